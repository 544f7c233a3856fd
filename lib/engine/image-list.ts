/** Images to be detected on: of a folder, a bucket, a pattern, a list, a data set, or a video. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { basename, dirname, extname, join, relative, resolve } from "node:path";
import {
  type DataSource,
  type DataSourceOptions,
  dataSource,
  isRemoteLocation,
  type Pixels,
  readCocoAnnotations,
} from "../data";
import { check, DlfsError, ErrorCode } from "../native";
import { type FrameChoice, isVideo, videoFrames } from "./video-frames";

/** An image that can be read. */
export interface ListedImage {
  /** By what it is known in results: its path in the folder, bucket or data set, parts separated by "/". */
  readonly name: string;
  /** Where it lies: an absolute path, or an address; none of a video's frames. */
  readonly location?: string;
  /** Its id in the data set, where it is of one. */
  readonly imageId?: number;
  /** Of a video: which of its frames, from 0, and the seconds from its start. */
  readonly frame?: number;
  readonly time?: number;
  /** The bytes of its file, or its pixels where it is decoded already. */
  read(signal?: AbortSignal): Promise<Uint8Array | Pixels>;
}

/** What a list is asked for its frames with. */
export interface FrameRequest {
  signal?: AbortSignal;
  /** Those of one process of several that share a video; see FrameChoice. */
  share?: FrameChoice["share"];
  /** Hears about how many there will be, where the video says. */
  onLength?: (frames: number) => void;
}

export interface ImageList {
  /** None of a video, whose frames are known as they are decoded. */
  readonly images: readonly ListedImage[];
  /** Of a video: its frames, in their order. */
  readonly frames?: (request?: FrameRequest) => AsyncIterable<ListedImage>;
  /** What was found where, in a line. */
  readonly description: string;
  /** Ids of the data set's categories by name, where it is one. */
  readonly categories?: ReadonlyMap<string, number>;
}

const IMAGE = /\.(jpe?g|png|webp)$/i;

function listed(source: DataSource, name: string, imageId?: number, key = name): ListedImage {
  const read = (signal?: AbortSignal) => source.read(key, { signal });
  return { name, location: source.locate(key), ...(imageId !== undefined && { imageId }), read };
}

/** A file by its path, which may be relative to the current folder. */
function localFile(path: string, name: string): ListedImage {
  const absolute = resolve(path);
  const read = async () => {
    try {
      return await Bun.file(absolute).bytes();
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      throw new DlfsError(ErrorCode.io, absolute, code === "ENOENT" ? "no such file" : message);
    }
  };
  return { name, location: absolute, read };
}

/**
 * Lists the images that a text names:
 *
 * - a folder, or an address such as gs://BUCKET/PREFIX, s3://BUCKET/PREFIX: all .jpg, .jpeg, .png and .webp below it, by name
 * - a pattern with *, ? or {a,b}: the files that it fits
 * - a .txt file: a path in each line, relative to the file; empty lines and those that begin with # are passed over
 * - a .json file: images of a COCO annotation file, which lie beside it or in ../SPLIT, ../images/SPLIT or ../images
 * - a video: its frames, named VIDEO/00000012 by their places in it, which ffmpeg decodes
 * - another file: that image
 *
 * @throws DlfsError that names what is missing, or holds no image; where frames are chosen of what is no video
 */
export async function listImages(location: string, options: ListOptions = {}): Promise<ImageList> {
  const found = await find(location, options);
  if (found.frames) return found;
  check(
    options.every === undefined && options.fps === undefined,
    location,
    () => "every and fps choose frames of a video, and this is none",
  );
  check(found.images.length > 0, location, () => "it has no .jpg, .jpeg, .png or .webp images", ErrorCode.io);
  return found;
}

export interface ListOptions extends Pick<FrameChoice, "every" | "fps"> {
  source?: DataSourceOptions;
  signal?: AbortSignal;
}

async function find(location: string, { source: sourceOptions, signal, ...choice }: ListOptions): Promise<ImageList> {
  const remote = isRemoteLocation(location);
  const path = remote ? location : resolve(location);
  if (remote || (existsSync(path) && statSync(path).isDirectory())) {
    const source = dataSource(remote ? location : path, sourceOptions);
    const images: ListedImage[] = [];
    for await (const { key } of source.list("", { signal })) if (IMAGE.test(key)) images.push(listed(source, key));
    return { images, description: `${images.length} images in ${location}` };
  }
  if (existsSync(path)) return isVideo(path) ? ofVideo(path, choice) : await ofFile(path);
  check(/[*?{[]/.test(location), location, () => "no such file or folder", ErrorCode.io);
  const files = await Array.fromAsync(new Bun.Glob(location).scan({ onlyFiles: true }));
  const images = files.filter((file) => IMAGE.test(file)).sort();
  return {
    images: images.map((file) => localFile(file, file)),
    description: `${images.length} images that fit ${location}`,
  };
}

function ofVideo(path: string, choice: Pick<FrameChoice, "every" | "fps">): ImageList {
  const name = basename(path);
  async function* frames(request: FrameRequest = {}): AsyncGenerator<ListedImage> {
    for await (const { index, time, pixels } of videoFrames(path, { ...choice, ...request })) {
      const place = { frame: index, ...(Number.isFinite(time) && { time }) };
      yield { name: `${name}/${String(index).padStart(8, "0")}`, ...place, read: async () => pixels };
    }
  }
  const { every = 1, fps } = choice;
  const which = fps !== undefined ? `${fps} frames a second` : every > 1 ? `one of ${every} frames` : "the frames";
  return { images: [], frames, description: `${which} of ${path}` };
}

async function ofFile(path: string): Promise<ImageList> {
  const folder = dirname(path);
  const extension = extname(path).toLowerCase();
  if (extension === ".json") return await ofAnnotations(path);
  if (extension === ".txt") {
    const lines = readFileSync(path, "utf8").split(/\r?\n/);
    const names = lines.map((line) => line.trim()).filter((line) => line !== "" && !line.startsWith("#"));
    const images = names.map((name) => localFile(resolve(folder, name), name));
    return { images, description: `${images.length} images of ${path}` };
  }
  return { images: [localFile(path, basename(path))], description: path };
}

async function ofAnnotations(path: string): Promise<ImageList> {
  const { images, categories } = await readCocoAnnotations(path);
  const root = dirname(dirname(path));
  const split = /^instances_(.+)\.json$/.exec(basename(path))?.[1];
  const folders = [
    ...(split === undefined ? [] : [join(root, split), join(root, "images", split)]),
    ...[join(root, "images"), dirname(path), root],
  ];
  const first = images[0]?.fileName ?? "";
  const folder = folders.find((candidate) => existsSync(join(candidate, first)));
  check(
    folder !== undefined,
    path,
    () => `${first}, the first of its images, is in none of ${folders.map((f) => relative(root, f) || ".").join(", ")}`,
    ErrorCode.io,
  );
  const source = dataSource(folder);
  return {
    images: images.map(({ id, fileName }) => listed(source, fileName, id)),
    description: `${images.length} images of ${path}, in ${folder}`,
    categories: new Map(categories.map(({ id, name }) => [name, id])),
  };
}
