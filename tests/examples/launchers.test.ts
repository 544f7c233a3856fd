/** The files of examples/launchers: commands that dlfs takes, scripts that bash reads, YAML that says what Kubernetes needs. */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { takeLaunchOptions } from "../../lib/cli/launch";
import { checkContradictions, parseTrainArguments } from "../../lib/train";

const folder = fileURLToPath(new URL("../../examples/launchers/", import.meta.url));
const files = readdirSync(folder).sort();
const textOf = (name: string) => readFileSync(join(folder, name), "utf8");

/** The arguments behind `dlfs train`, those of a shell replaced by texts that stand for their values. */
function trainCommands(text: string): string[][] {
  const joined = text.replaceAll(/\\\n\s*/g, " ").replaceAll(/\n {6,}(?=--)/g, " ");
  return [...joined.matchAll(/^(?!#).*bun run dlfs train (.*)$/gm)].map(([, words]) =>
    (words as string)
      .replaceAll(/"\$\{DATA:-([^}]*)\}"/g, "$1")
      .replaceAll('"', "")
      .trim()
      .split(/\s+/),
  );
}

test("there is one for each launcher", () => {
  expect(files).toEqual(["kubernetes.yaml", "mpirun.sh", "slurm.sbatch", "torchrun.sh"]);
});

test.each(files)("%s starts a training with options that there are", (name) => {
  const commands = trainCommands(textOf(name));
  expect(commands.length).toBeGreaterThan(0);
  for (const words of commands) {
    const known = words.filter((word, i) => word !== "--resume" && words[i - 1] !== "--resume"); // of a run that is not here
    const args = parseTrainArguments(takeLaunchOptions(known)?.rest ?? known);
    checkContradictions(args);
    if (known.length < words.length) continue;
    expect(args.settings).toMatchObject({ batch: 256, syncBn: true, model: "retinanet_resnet50_fpn" });
  }
});

test.each(files.filter((name) => !name.endsWith(".yaml")))("%s is a script that bash reads", (name) => {
  const { exitCode, stderr } = Bun.spawnSync(["bash", "-n", join(folder, name)]);
  expect([exitCode, stderr.toString()]).toEqual([0, ""]);
});

test("the Kubernetes Job's pods find each other by the Service's name, and have time to save", () => {
  const [service, job] = Bun.YAML.parse(textOf("kubernetes.yaml")) as [
    { metadata: { name: string }; spec: { clusterIP: string; selector: Record<string, string> } },
    {
      metadata: { name: string };
      spec: {
        completions: number;
        parallelism: number;
        completionMode: string;
        template: {
          spec: { subdomain: string; terminationGracePeriodSeconds: number; containers: { args: string[] }[] };
        };
      };
    },
  ];
  expect(service.spec).toMatchObject({ clusterIP: "None", selector: { "job-name": job.metadata.name } });
  const { completions, parallelism, completionMode, template } = job.spec;
  expect([completions, parallelism, completionMode]).toEqual([2, 2, "Indexed"]);
  expect(template.spec).toMatchObject({ subdomain: service.metadata.name, terminationGracePeriodSeconds: 120 });
  const command = template.spec.containers[0]?.args[0];
  expect(command).toContain(`--nodes 2 --node-rank "$JOB_COMPLETION_INDEX"`);
  expect(command).toContain(`--rendezvous ${job.metadata.name}-0.${service.metadata.name}:29400`);
});
