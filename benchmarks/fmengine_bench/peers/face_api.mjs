// face-api (@vladmandic/face-api) on its WASM backend: the expression network on the whole crop, or on the faces that
// its own detector finds in a photograph.
// The protocol is that of serve.py. Packages are found from the working directory, which is the environment's.
import { createRequire } from "node:module";
import { readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { join } from "node:path";
import { performance } from "node:perf_hooks";

const require = createRequire(process.cwd() + "/");
const replies = process.stdout.write.bind(process.stdout);
console.log = console.info = console.error; // libraries print; their output must not end up between the replies

async function open(threads, scenes) {
  const tf = require("@tensorflow/tfjs");
  const wasm = require("@tensorflow/tfjs-backend-wasm");
  const jpeg = require("jpeg-js");
  const folder = join(process.cwd(), "node_modules/@tensorflow/tfjs-backend-wasm/dist/");
  wasm.setWasmPaths(folder);
  if (wasm.setThreadsCount) wasm.setThreadsCount(threads);
  const faceapi = require("@vladmandic/face-api/dist/face-api.node-wasm.js");
  await faceapi.tf.setBackend("wasm");
  await faceapi.tf.ready();
  await faceapi.nets.faceExpressionNet.loadFromDisk(join(process.cwd(), "node_modules/@vladmandic/face-api/model"));
  const models = join(process.cwd(), "node_modules/@vladmandic/face-api/model");
  if (scenes) await faceapi.nets.ssdMobilenetv1.loadFromDisk(models); // its default detector
  const used = wasm.getThreadsCount(); // node gives WASM one, whatever was requested
  async function look(path) {
    let picture;
    try {
      picture = jpeg.decode(readFileSync(path), { useTArray: true, formatAsRGBA: false });
    } catch {
      return { label: null, score: 0 }; // no JPEG, or a broken one
    }
    const { width, height, data } = picture;
    const image = faceapi.tf.tensor3d(data, [height, width, 3], "int32");
    if (scenes) {
      const found = await faceapi.detectAllFaces(image).withFaceExpressions();
      image.dispose();
      const faces = found.map(({ detection: { box }, expressions }) => {
        const label = expressions.happy >= expressions.sad ? "happy" : "sad";
        return [box.left, box.top, box.right, box.bottom, label];
      });
      return { label: null, score: 0, faces };
    }
    const scores = await faceapi.nets.faceExpressionNet.predictExpressions(image);
    image.dispose();
    const label = scores.happy >= scores.sad ? "happy" : "sad";
    return { label, score: scores[label] };
  }
  const versions = { "face-api": faceapi.version.faceapi ?? String(faceapi.version), tfjs: tf.version.tfjs };
  return { look, versions, what: `its expression network, WASM on ${used} thread(s), jpeg-js` };
}

async function all(peer, paths) {
  const found = [];
  for (const path of paths) found.push(await peer.look(path));
  return found;
}

function* walk(folder) {
  for (const name of readdirSync(folder).sort()) {
    const path = join(folder, name);
    if (statSync(path).isDirectory()) yield* walk(path);
    else yield path;
  }
}

const [folder, output] = process.argv.slice(2);
if (folder) {
  const peer = await open(2);
  const paths = [...walk(folder)];
  const found = await all(peer, paths);
  writeFileSync(output, found.map((a, i) => JSON.stringify({ path: paths[i], label: a.label, confidence: a.score })).join("\n") + "\n");
} else {
  let peer;
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    let reply;
    try {
      if (request.do === "open") {
        peer = await open(request.threads, request.scenes);
        reply = { what: peer.what, trained: true, versions: peer.versions };
      } else {
        const began = performance.now();
        const found = await all(peer, request.paths);
        reply = { seconds: (performance.now() - began) / 1000, labels: found.map((a) => a.label) };
        reply.faces = found.map((a) => a.faces ?? null);
      }
    } catch (error) {
      reply = { error: String(error) };
    }
    replies(JSON.stringify(reply) + "\n");
  }
}
