/** The references themselves against recorded numbers, where the cases' own records do not reach. */
import { describe, expect, test } from "bun:test";
import { expectClose } from "../support/compare";
import { loadGolden } from "../support/golden";
import { activationCases } from "./cases/activation";
import { boxCases } from "./cases/boxes";
import type { OpCase } from "./cases/case";
import { channelCases } from "./cases/channel";
import { convCases } from "./cases/conv";
import { groupNormCases } from "./cases/group-norm";
import { lossCases } from "./cases/losses";
import { normCases } from "./cases/norm";
import { poolCases } from "./cases/pool";
import { postprocessCases } from "./cases/postprocess";
import { preprocessCases } from "./cases/preprocess";
import { focalTerm } from "./reference/losses";
import { drawInputs } from "./run-case";

describe("focal loss of single logits", () => {
  const cases = loadGolden<{ alpha: number; gamma: number }>("losses").filter((golden) => golden.has("x"));
  test.each(cases.map((golden) => [golden.name, golden] as const))("%s", (_name, golden) => {
    const { alpha, gamma } = golden.params;
    for (const positive of [false, true]) {
      const terms = Array.from(golden.array("x"), (x) => focalTerm(x, positive, alpha, gamma));
      const side = positive ? 1 : 0;
      const margin = { rtol: 1e-5, atol: 1e-7 };
      expectClose(
        terms.map(({ loss }) => loss),
        golden.array(`loss${side}`),
        margin,
        "loss",
      );
      expectClose(
        terms.map(({ slope }) => slope),
        golden.array(`grad${side}`),
        margin,
        "slope",
      );
    }
  });
});

// `recorded` cases compare the reference with the record when the reference runs: no device is needed for that.
describe("references agree with PyTorch", () => {
  const lists: Record<string, readonly OpCase[]> = {
    convCases,
    normCases,
    groupNormCases,
    poolCases,
    activationCases,
    channelCases,
    boxCases,
    lossCases,
    postprocessCases,
    preprocessCases,
  };
  for (const [name, cases] of Object.entries(lists)) {
    test(name, () => {
      const recorded = cases.filter((opCase) => opCase.name.endsWith("(recorded)"));
      expect(recorded.length).toBeGreaterThan(2);
      for (const opCase of recorded) opCase.reference(drawInputs(opCase, "f32"));
    });
  }
});
