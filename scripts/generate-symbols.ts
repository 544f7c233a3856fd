/**
 * Generates lib/native/symbols.generated.ts from csrc/include/dlfs.h: the table that bun:ffi's dlopen takes, and a typed
 * interface with the header's comments. `bun scripts/generate-symbols.ts --check` fails where the file is out of date.
 *
 * Types: int32_t and its typedefs -> i32, int64_t and handles -> i64, double -> f64, DLFS_HOST pointers -> buffer (a view,
 * used during the call only), other pointers -> ptr (a device address as a number, or null).
 */
import { createHash } from "node:crypto";
import { fileURLToPath } from "node:url";

interface Argument {
  name: string;
  ffi: "i32" | "i64" | "f64" | "buffer" | "ptr";
}
interface NativeFunction {
  symbol: string;
  returns: "i32" | "cstring";
  comment: string;
  args: Argument[];
}

const root = fileURLToPath(new URL("..", import.meta.url));
const headerPath = `${root}csrc/include/dlfs.h`;
const outputPath = `${root}lib/native/symbols.generated.ts`;

const handles = ["context", "stream", "event", "graph", "conv", "sgd", "decoder", "job", "average", "comm"].map(
  (kind) => `dlfs_${kind}`,
);
const int32Types = ["int32_t", "dlfs_status", "dlfs_dtype", "dlfs_activation"];

function camelCase(snake: string): string {
  return snake.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

function parseArgument(text: string): Argument {
  const match = /^(DLFS_HOST )?(const )?(\w+) (\*)?(const \*)?(\w+)$/.exec(
    text.replace(/\*\*/g, "*").replace(/\s+/g, " ").trim(),
  );
  if (!match) throw new Error(`generate-symbols: cannot parse the argument "${text}"`);
  const [, host, , type, pointer, , name] = match as unknown as [
    string,
    string?,
    string?,
    string?,
    string?,
    string?,
    string?,
  ];
  const argument = (ffi: Argument["ffi"]): Argument => ({
    name: name === "var" ? "variance" : camelCase(name as string),
    ffi,
  });
  if (pointer) return argument(host ? "buffer" : "ptr");
  if (int32Types.includes(type as string)) return argument("i32");
  if (type === "int64_t" || handles.includes(type as string)) return argument("i64");
  if (type === "double") return argument("f64");
  throw new Error(`generate-symbols: unknown type "${type}" in "${text}"`);
}

function parseHeader(source: string): NativeFunction[] {
  const functions: NativeFunction[] = [];
  const pattern =
    /((?:\/\*(?:(?!\*\/)[\s\S])*\*\/\s*)?)DLFS_API\s+(dlfs_status|int32_t|const char \*)\s*(dlfs_\w+)\(([^)]*)\);[ \t]*(\/\*[^\n]*\*\/)?/g;
  for (const [, before, returns, symbol, args, after] of source.matchAll(pattern)) {
    const comment = (after ?? before ?? "")
      .replace(/^\s*\/\*+ ?|\s*\*\/\s*$/g, "")
      .replace(/\n \* ?/g, "\n")
      .trim();
    functions.push({
      symbol: symbol as string,
      returns: returns === "const char *" ? "cstring" : "i32",
      comment: comment.startsWith("----") ? "" : comment,
      args: args === "void" ? [] : (args as string).split(",").map(parseArgument),
    });
  }
  return functions;
}

function parseConstants(source: string): [string, number][] {
  return [...source.matchAll(/^#define DLFS_(\w+) (-?\d+)\b/gm)].map(([, name, value]) => [
    name as string,
    Number(value),
  ]);
}

const tsTypes = { i32: "number", i64: "number", f64: "number", buffer: "HostView", ptr: "Address | null" } as const;

function render(source: string): string {
  const functions = parseHeader(source);
  const declared = source.match(/DLFS_API (?:dlfs_status|int32_t|const char)/g)?.length ?? 0;
  if (functions.length !== declared)
    throw new Error(`generate-symbols: parsed ${functions.length} of ${declared} functions`);
  const hash = createHash("sha256").update(source).digest("hex").slice(0, 16);
  const lines = [
    "// Generated from csrc/include/dlfs.h by scripts/generate-symbols.ts. Do not edit.",
    "",
    `export const headerHash = "${hash}";`,
    "",
    "/** The header's constants, without their DLFS_ prefix. */",
    "export const constants = {",
    ...parseConstants(source).map(([name, value]) => `  ${name}: ${value},`),
    "} as const;",
    "",
    "/** A device address: an integer that JavaScript holds exactly. */",
    "export type Address = number;",
    "/** Host memory passed for the duration of a call. */",
    "export type HostView = NodeJS.TypedArray | DataView;",
    "",
    "export const symbols = {",
    ...functions.map(
      (f) => `  ${f.symbol}: { args: [${f.args.map((a) => `"${a.ffi}"`).join(", ")}], returns: "${f.returns}" },`,
    ),
    "} as const;",
    "",
    "/** Argument names, for error messages. */",
    "export const argumentNames: Record<string, readonly string[]> = {",
    ...functions.map((f) => `  ${f.symbol}: [${f.args.map((a) => `"${a.name}"`).join(", ")}],`),
    "};",
    "",
    "/** The native functions: a negative status throws DlfsError, others are returned (0 done, 1 not ready). */",
    "export interface NativeFunctions {",
  ];
  for (const f of functions) {
    if (f.returns === "cstring" || f.symbol === "dlfs_abi_version") continue;
    if (f.comment) {
      const text = f.comment.split("\n");
      if (text.length === 1) lines.push(`  /** ${text[0]} */`);
      else lines.push("  /**", ...text.map((line) => `   * ${line}`.trimEnd()), "   */");
    }
    const args = f.args.map((a) => `${a.name}: ${tsTypes[a.ffi]}`).join(", ");
    lines.push(`  ${camelCase(f.symbol.slice("dlfs_".length))}(${args}): number;`);
  }
  lines.push("}", "");
  return lines.join("\n");
}

const output = render(await Bun.file(headerPath).text());
const current = await Bun.file(outputPath)
  .text()
  .catch(() => "");
if (process.argv.includes("--check")) {
  if (current !== output) {
    console.error("lib/native/symbols.generated.ts is out of date: run `npm run generate:symbols`");
    process.exit(1);
  }
} else if (current !== output) {
  await Bun.write(outputPath, output);
  console.log("wrote lib/native/symbols.generated.ts");
}
