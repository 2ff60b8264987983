"""The texts beside a captioner in ONNX: a README, and a program in Python and in JavaScript."""

README = """\
# The captioner as ONNX

Float32, opset 17, one picture at a time. `words.json` lists the words in the order of their ids, \
`settings.json` the size of the pictures and the ids that the loop needs.

| file | reads | gives |
|---|---|---|
| `cnn.onnx` | `pixels` uint8 [1, {height}, {width}, 3], uncropped, RGB | `grid`, `pooled` |
| `encode.onnx` | `grid`, `pooled` | what a step needs ({memory}), and `state_...` |
| `step.onnx` | `word` int64 [captions], the outputs of `encode.onnx` | `log_probabilities` \
[captions, words], `next_state_...`, `attention` if the model attends |

A caption starts with word {bos} and ends with word {eos}. The first column of \
`log_probabilities` is word {eos}, so column n is word n + {eos}; no other special word can be \
written. Captions of the same picture, as in a beam search, are rows of `word` and of the states.

Two programs write captions greedily:

```sh
pip install onnxruntime pillow
python caption.py photo.jpg

npm install onnxruntime-node sharp
node caption.mjs photo.jpg
```

In a browser, use `onnxruntime-web` in the same way, and the pixels of a canvas in place of sharp. \
Resize them as the program does: other ways change words. `python -m decoder.caption` uses beam \
search instead, and suppresses immediate repetitions.
"""

PYTHON = '''\
"""Print a caption for each picture: python caption.py photo.jpg"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder = Path(__file__).parent
cnn, encode, step = (
    onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    for name in ("cnn", "encode", "step")
)
words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
size = settings["width"], settings["height"]
method = Image.Resampling[settings["interpolation"]]


def run(session, known):
    """Return the outputs of a network by name."""
    inputs = {one.name: known[one.name] for one in session.get_inputs()}
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, inputs)))


def caption(file):
    picture = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    pixels = np.asarray(picture.convert("RGB").resize(size, method))
    known = run(encode, run(cnn, {"pixels": pixels[None]}))
    word, written = settings["bos"], []
    for _ in range(settings["longest"]):
        found = run(step, known | {"word": np.array([word])})
        word = int(found["log_probabilities"][0].argmax()) + settings["eos"]
        if word == settings["eos"]:
            break
        written.append(words[word])
        known |= {name[5:]: value for name, value in found.items() if name.startswith("next_")}
    return " ".join(written)


for file in sys.argv[1:]:
    print(caption(file))
'''

JAVASCRIPT = """\
// Print a caption for each picture: node caption.mjs photo.jpg
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import ort from "onnxruntime-node";
import sharp from "sharp";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const read = (name) => JSON.parse(readFileSync(path(name), "utf8"));
const words = read("words.json");
const { width, height, interpolation, bos, eos, longest } = read("settings.json");
const [cnn, encode, step] = await Promise.all(
  ["cnn", "encode", "step"].map((name) => ort.InferenceSession.create(path(`${name}.onnx`))),
);

// Returns the outputs of a network by name.
const run = (session, known) =>
  session.run(Object.fromEntries(session.inputNames.map((name) => [name, known[name]])));

// Pillow's filters, with their radius. Other resizing would change about every third caption.
const cubic = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((2.5 - 0.5 * x) * x - 4) * x + 2);
const filters = { BICUBIC: [2, cubic], BILINEAR: [1, (x) => 1 - x] };

// Resizes one axis of pixels [rows, from, stride] to [rows, to, stride].
function resize(pixels, rows, from, to, stride) {
  const [radius, filter] = filters[interpolation];
  const scale = Math.max(from / to, 1);
  const out = new Uint8ClampedArray(rows * to * stride); // rounds and clips
  for (let i = 0; i < to; i++) {
    const centre = ((i + 0.5) * from) / to;
    const first = Math.max(0, Math.floor(centre - radius * scale + 0.5));
    const end = Math.min(from, Math.floor(centre + radius * scale + 0.5));
    const weights = [];
    for (let j = first; j < end; j++) {
      const distance = Math.abs(j + 0.5 - centre) / scale;
      weights.push(distance < radius ? filter(distance) : 0);
    }
    const total = weights.reduce((a, b) => a + b);
    for (let row = 0; row < rows; row++)
      for (let k = 0; k < stride; k++) {
        let sum = 0;
        for (let j = first; j < end; j++)
          sum += weights[j - first] * pixels[(row * from + j) * stride + k];
        out[(row * to + i) * stride + k] = sum / total;
      }
  }
  return out;
}

async function caption(file) {
  const { data, info } = await sharp(file)
    .rotate() // upright, by its EXIF orientation
    .flatten({ background: "white" })
    .toColourspace("srgb")
    .raw()
    .toBuffer({ resolveWithObject: true });
  const wide = resize(data, info.height, info.width, width, 3);
  const pixels = new Uint8Array(resize(wide, 1, info.height, height, 3 * width));
  const picture = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const known = { ...(await run(encode, await run(cnn, { pixels: picture }))) };
  const written = [];
  known.word = new ort.Tensor("int64", [BigInt(bos)], [1]);
  while (written.length < longest) {
    const found = await run(step, known);
    const scores = found.log_probabilities.data;
    const word = scores.indexOf(scores.reduce((a, b) => Math.max(a, b))) + eos;
    if (word === eos) break;
    written.push(words[word]);
    known.word = new ort.Tensor("int64", [BigInt(word)], [1]);
    for (const [name, value] of Object.entries(found))
      if (name.startsWith("next_")) known[name.slice(5)] = value;
  }
  return written.join(" ");
}

for (const file of process.argv.slice(2)) console.log(await caption(file));
"""
