import type { Parameter } from "../graph";
import type { Model } from "../layers";
import { DlfsError, ErrorCode } from "../native";

/** Parameters that do not train, for good or at first. */
export interface FreezeRule {
  /**
   * Which: a layer's path or a parameter's name, with wildcards: * and ? within one part of a path, ** across parts, {a,b} and
   * [12] for alternatives; "backbone.body.layer[12]" is all below these layers. Or a RegExp of the names.
   */
  match: string | RegExp;
  /** The first iteration in which they train. Default: none. */
  until?: number;
}

/** Whether a pattern matches a parameter's name, or the path of a layer above it. */
export function matchesPath(pattern: string | RegExp, name: string): boolean {
  if (pattern instanceof RegExp) return pattern.test(name);
  // Layer paths are matched as file paths are.
  const glob = new Bun.Glob(pattern.replaceAll(".", "/"));
  const parts = name.split(".");
  return parts.some((_, i) => glob.match(parts.slice(0, i + 1).join("/")));
}

/** Some of a model's names as a message shows them: the first two parts of each path. */
export function describeNames(names: readonly string[]): string {
  const parts = [...new Set(names.map((name) => name.split(".").slice(0, 2).join(".")))];
  return parts.length > 8 ? `${parts.slice(0, 8).join(", ")}, ...` : parts.join(", ");
}

const trainedOf = (model: Model) => [...model.namedParameters()].filter(([, { requiresGrad }]) => requiresGrad);

/** What is wrong with rules for a model, and which of them: one that matches nothing, or the last parameter that would train. */
export function problemOf(
  model: Model,
  rules: readonly FreezeRule[],
): { rule: number; field: ".match" | ".until"; message: string } | null {
  const names = trainedOf(model).map(([name]) => name);
  let left = names;
  for (const [rule, { match, until }] of rules.entries()) {
    if (until !== undefined && !(Number.isSafeInteger(until) && until >= 1)) {
      return { rule, field: ".until", message: `expected an iteration from 1, got ${until}` };
    }
    const others = left.filter((name) => !matchesPath(match, name));
    if (!names.some((name) => matchesPath(match, name))) {
      const message = `${match} matches no parameter that would train; they begin with ${describeNames(names)}`;
      return { rule, field: ".match", message };
    }
    if (others.length === 0)
      return { rule, field: ".match", message: `${match} leaves no parameter to train at first` };
    left = others;
  }
  return null;
}

/**
 * Which of a model's parameters train when. Batch normalization of frozen layers goes on with the batch's statistics, as in
 * PyTorch; frozen statistics are a matter of the model (FrozenBatchNorm2d).
 */
export class Freezing {
  /** Parameters that are frozen at first, by the iteration in which they begin to train. */
  readonly #later: ReadonlyMap<Parameter, number>;

  /**
   * Freezes what is never to train, from now on: before the optimizer is made. What is to train later is left to apply().
   *
   * @throws DlfsError where a rule cannot be had; see problemOf
   */
  constructor(model: Model, rules: readonly FreezeRule[] = []) {
    const problem = problemOf(model, rules);
    if (problem) throw new DlfsError(ErrorCode.argument, `freeze[${problem.rule}]${problem.field}`, problem.message);
    const trained = trainedOf(model);
    const later = new Map<Parameter, number>();
    const never: Parameter[] = [];
    for (const [name, parameter] of trained) {
      // Of several rules the first holds, as of parameter groups.
      const rule = rules.find(({ match }) => matchesPath(match, name));
      if (rule?.until !== undefined) later.set(parameter, rule.until);
      else if (rule) never.push(parameter);
    }
    for (const parameter of never) parameter.requiresGrad = false;
    this.#later = later;
  }

  /** Freezes and unfreezes for an iteration; returns the first one for which that has to be done again, or Infinity. */
  apply(iteration: number): number {
    let next = Number.POSITIVE_INFINITY;
    for (const [parameter, until] of this.#later) {
      parameter.requiresGrad = iteration >= until;
      if (until > iteration) next = Math.min(next, until);
    }
    return next;
  }
}
