import { describe, expect, test } from "bun:test";
import { fileURLToPath } from "node:url";
import packageJson from "../../package.json";

const program = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));

function dlfs(...args: string[]): { status: number; stdout: string; stderr: string } {
  const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, program, ...args]);
  return { status: exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
}

describe("dlfs", () => {
  test("--help lists the verbs", () => {
    const { status, stdout, stderr } = dlfs("--help");
    expect(stdout).toContain("Usage: dlfs VERB");
    expect(stdout).toMatch(/^ {2}doctor +\S/m);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  });

  test("--version prints the package's version alone", () => {
    expect(dlfs("--version")).toEqual({ status: 0, stdout: `${packageJson.version}\n`, stderr: "" });
  });

  test("an unknown verb is a usage error that names it", () => {
    const { status, stdout, stderr } = dlfs("trian", "--iterations", "3");
    expect(stderr).toBe('dlfs: unknown verb "trian"; `dlfs --help` lists them\n');
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
  });

  test("names of Object's properties are no verbs", () => {
    expect(dlfs("constructor").status).toBe(2);
  });

  test("no verb prints the help as an error", () => {
    const { status, stdout, stderr } = dlfs();
    expect(stderr).toContain("Usage: dlfs VERB");
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
  });

  test("VERB --help prints the verb's help and does not run it", () => {
    const { status, stdout } = dlfs("doctor", "--help");
    expect(stdout).toStartWith("dlfs doctor:");
    expect(status).toBe(0);
  });

  test("an unknown option is a usage error that names it", () => {
    const { status, stderr } = dlfs("doctor", "--vreose");
    expect(stderr).toContain("'--vreose'");
    expect(status).toBe(2);
  });
});
