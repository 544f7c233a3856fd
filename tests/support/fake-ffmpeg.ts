/**
 * A program that speaks as ffmpeg does to lib/engine/video-frames.ts: frames as PPM on standard output, in pieces of odd sizes, and
 * what it says of them on standard error, late. Its video has 12 frames of 40x30 at 10 frames a second, which it chooses from as the
 * filters say. FAKE_FFMPEG is what it does: "version 4.4.2", "fail", "cut", "noise", "slow"; several between commas.
 */
const does = (process.env.FAKE_FFMPEG ?? "").split(",");
const args = process.argv.slice(2);
const version = does.find((word) => word.startsWith("version "))?.slice(8) ?? "6.1.1";
if (args[0] === "-version") {
  console.log(`ffmpeg version ${version} Copyright (c) the developers`);
  process.exit(0);
}
if (process.env.FAKE_FFMPEG_ARGUMENTS) await Bun.write(process.env.FAKE_FFMPEG_ARGUMENTS, args.join("\n"));

export const FRAMES = 12;
const [width, height] = [40, 30];
const filters = args[args.indexOf("-vf") + 1] as string;
let chosen = Array.from({ length: FRAMES }, (_, i) => i);
const every = /mod\(n\\,(\d+)\)\),|mod\(n\\,(\d+)\)\)$/.exec(filters);
if (every) chosen = chosen.filter((n) => n % Number(every[1] ?? every[2]) === 0);
const fps = /floor\(t\*([\d.]+)/.exec(filters);
if (fps)
  chosen = chosen.filter(
    (n) => n === 0 || Math.floor((n / 10) * Number(fps[1])) > Math.floor(((n - 1) / 10) * Number(fps[1])),
  );
const share = /eq\(mod\(n\\,(\d+)\)\\,(\d+)\)/.exec(filters);
if (share) chosen = chosen.filter((_, i) => i % Number(share[1]) === Number(share[2]));
const last = filters.split(",showinfo").length > 1 ? filters.split(/,(?=select|showinfo)/).length - 1 : 0;

console.error("  Duration: 00:00:01.20, start: 0.000000, bitrate: 15 kb/s");
console.error("  Stream #0:0[0x1](und): Video: h264 (High), yuv420p, 40x30 [SAR 1:1], 12 kb/s, 10 fps, 10 tbr");
const say = (filter: number, n: number, frame: number) =>
  console.error(
    `[Parsed_showinfo_${filter} @ 0x5] n:${String(n).padStart(4)} pts:${1024 * frame} pts_time:${frame / 10} pos: 1 fmt:yuv420p`,
  );
if (does.includes("noise")) {
  process.stdout.write("GIF89a, and more that is no picture of the kind");
  await Bun.sleep(5000);
}
const told: number[] = [];
for (const [place, frame] of chosen.entries()) {
  const pixels = new Uint8Array(3 * width * height).fill(20 * frame + 10);
  const bytes = Buffer.concat([Buffer.from(`P6\n${width} ${height}\n255\n`), pixels]);
  const end = does.includes("cut") && place === 2 ? 1000 : bytes.length;
  for (let at = 0; at < end; at += 777) {
    process.stdout.write(bytes.subarray(at, Math.min(end, at + 777)));
    await Bun.sleep(0);
  }
  told.push(frame);
  // What is said comes after what it is said of.
  if (does.includes("slow")) await Bun.sleep(20);
  for (let n = (told.at(-2) ?? -1) + 1; n <= frame; n++) say(0, n, n);
  if (last > 0) say(last, place, frame);
  if (end < bytes.length) process.exit(0);
  if (does.includes("fail") && place === 4) {
    console.error("[h264 @ 0x5] Invalid NAL unit size (0 > 100).");
    console.error("file:clip.mp4: Invalid data found when processing input");
    process.exit(69);
  }
}
process.exit(0);
