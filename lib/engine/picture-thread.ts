/** A thread that draws pictures of predictions: see PictureDrawers. */
import { DeviceImageCodec } from "../data";
import { DlfsError, ErrorCode } from "../native";
import { Device } from "../tensor";
import { drawPrediction } from "./draw-prediction";
import type { FromPictureThread, ToPictureThread } from "./picture-drawers";

declare const self: Worker;

const device = new Device({ backend: "cpu", threads: 1 });
const codec = new DeviceImageCodec(device);
let classes: readonly string[] = [];

const send = (message: FromPictureThread): void => self.postMessage(message);

async function draw({ id, content, prediction, path }: Extract<ToPictureThread, { kind: "draw" }>): Promise<void> {
  try {
    await Bun.write(path, drawPrediction({ codec, classes }, content, prediction));
    send({ kind: "drawn", id });
  } catch (error) {
    const known = error instanceof DlfsError ? error : null;
    const text = error instanceof Error ? error.message : String(error);
    const op = known?.op ?? path;
    send({
      kind: "failed",
      id,
      code: known?.code ?? ErrorCode.io,
      op,
      message: known ? text.slice(op.length + 2) : text,
    });
  }
}

self.onmessage = ({ data }: MessageEvent<ToPictureThread>) => {
  if (data.kind === "classes") classes = data.classes;
  else if (data.kind === "draw") void draw(data);
  else {
    device.dispose();
    send({ kind: "ended" });
    process.exit(0);
  }
};
