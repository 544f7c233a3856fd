/** Models as plain data: what a run's config.json and checkpoints keep, and what makes the same model again. */
import { boxLossKinds } from "../detection";
import { check, DlfsError, ErrorCode } from "../native";
import { CompactDetector, type CompactDetectorOptions, octaveAnchors } from "./compact-detector";
import { boolean, checkFields, describe, integer, list, number, object, oneOf, type Rule } from "./config-rules";
import type { DetectionModel } from "./detection-model";
import { FCOS, type FCOSOptions } from "./fcos";
import { type BackboneName, backboneNames } from "./pyramid-backbone";
import { RetinaNet, type RetinaNetOptions } from "./retinanet";
import { SSDLite, type SSDLiteOptions } from "./ssdlite";

export interface CompactConfig extends Omit<CompactDetectorOptions, "anchors"> {
  readonly name: "compact";
  /** The smallest anchor at stride 8, in pixels (see `octaveAnchors`). Default 24. */
  readonly anchorBase?: number;
}

export interface RetinaNetConfig extends Omit<RetinaNetOptions, "backbone"> {
  readonly name: "retinanet";
  /** Default "resnet50". */
  readonly backbone?: BackboneName;
}

export interface FCOSConfig extends Omit<FCOSOptions, "backbone"> {
  readonly name: "fcos";
  /** Default "resnet50". */
  readonly backbone?: BackboneName;
}

export interface SSDLiteConfig extends SSDLiteOptions {
  readonly name: "ssdlite";
}

/** A detector by name, with its options; JSON can hold it. */
export type ModelConfig = CompactConfig | RetinaNetConfig | FCOSConfig | SSDLiteConfig;

/** A detector of the user's own by the name that it was registered under, with whatever options it has. */
export interface RegisteredConfig {
  readonly name: string;
  readonly classes: number;
  readonly [option: string]: unknown;
}

const commonFields = {
  name: { expected: "a name", fits: (value) => typeof value === "string" },
  classes: integer(1),
} satisfies Record<string, Rule>;

const focal = object({ alpha: number(), gamma: number(0) });

const suppressionFields = {
  scoreThreshold: number(),
  topK: integer(1),
  nmsThreshold: number(0, 1),
  maxDetections: integer(1),
  classAware: boolean,
  softNms: object({
    kind: oneOf("linear", "gaussian"),
    sigma: number(0),
    iouThreshold: number(0, 1),
    minScore: number(),
  }),
} satisfies Record<string, Rule>;

const detectorFields = {
  ...commonFields,
  matcher: object({ high: number(0, 1), low: number(0, 1), allowLowQuality: boolean }),
  focal,
  boxLoss: object({ kind: oneOf(...boxLossKinds), beta: number(0) }),
  postprocess: object({ ...suppressionFields, weights: list(number(), 4) }),
} satisfies Record<string, Rule>;

const normFields = {
  norm: oneOf("batch", "frozen"),
  normEps: number(0),
  normMomentum: number(0, 1),
  trainableLayers: integer(0),
} satisfies Record<string, Rule>;

const pyramidFields = {
  ...normFields,
  backbone: oneOf(...backboneNames),
  p6From: oneOf("p5", "c5"),
} satisfies Record<string, Rule>;

interface Kind {
  readonly fields: Readonly<Record<string, Rule>>;
  readonly make: (config: never) => DetectionModel;
}

const kinds: Record<ModelConfig["name"], Kind> = {
  compact: {
    fields: {
      ...detectorFields,
      width: integer(1),
      depths: list(integer(1), 4),
      pyramidChannels: integer(1),
      headConvs: integer(0),
      anchorBase: number(1),
    },
    make: ({ name: _, anchorBase = 24, ...options }: CompactConfig) =>
      new CompactDetector({ ...options, anchors: octaveAnchors(anchorBase) }),
  },
  retinanet: {
    fields: {
      ...detectorFields,
      ...pyramidFields,
      anchors: object({ sizes: list(list(number(1))), aspectRatios: list(number(0)) }),
    },
    make: ({ name: _, ...options }: RetinaNetConfig) => new RetinaNet(options),
  },
  fcos: {
    fields: {
      ...commonFields,
      ...pyramidFields,
      strides: list(integer(1)),
      centerSamplingRadius: number(0),
      focal,
      postprocess: object(suppressionFields),
    },
    make: ({ name: _, ...options }: FCOSConfig) => new FCOS(options),
  },
  ssdlite: {
    fields: {
      ...commonFields,
      ...normFields,
      widthMultiplier: number(0),
      extraChannels: list(integer(1)),
      anchors: object({
        aspectRatios: list(list(number(0))),
        minRatio: number(0),
        maxRatio: number(0),
        scales: list(number(0)),
        steps: list(number(0)),
        clip: boolean,
      }),
      iouThreshold: number(0, 1),
      negativeRatio: number(0),
      postprocess: object({ ...suppressionFields, weights: list(number(), 4) }),
    },
    make: ({ name: _, ...options }: SSDLiteConfig) => new SSDLite(options),
  },
};

/** The names that a `ModelConfig` may have. */
export const modelNames = Object.keys(kinds) as ModelConfig["name"][];

const registered = new Map<string, (config: RegisteredConfig) => DetectionModel>();

/**
 * Makes an architecture of the user's own known by a name: configurations, and the checkpoints and model files that hold them,
 * may say `{ name, classes, ... }` from now on.
 *
 * @param make makes the model of such a configuration, which may hold anything; it throws where an option is wrong
 * @returns forgets the name again
 * @throws DlfsError where the name is taken
 */
export function registerModel(name: string, make: (config: RegisteredConfig) => DetectionModel): Disposable {
  const free = name !== "" && !Object.hasOwn(kinds, name) && !registered.has(name);
  check(free, "registerModel", () => `name: expected one that is not taken, got ${describe(name)}`);
  registered.set(name, make);
  return { [Symbol.dispose]: () => void registered.delete(name) };
}

/**
 * Makes the model that a configuration describes; it is on no device yet, and has no weights.
 *
 * @param source where the configuration was read, for messages: "runs/demo-1/config.json: model"
 * @throws DlfsError naming source and field: an unknown name or field, a missing number of classes, a value out of range
 */
export function modelFromConfig(config: ModelConfig | RegisteredConfig, source = "modelFromConfig"): DetectionModel {
  const { name, classes } = (config ?? {}) as Partial<ModelConfig | RegisteredConfig>;
  const own = registered.get(name as string);
  if (own) {
    check(
      Number.isSafeInteger(classes) && (classes as number) > 0,
      source,
      () => `classes: expected ${commonFields.classes.expected}, got ${describe(classes)}`,
    );
    return own(config as RegisteredConfig);
  }
  const known = typeof name === "string" && Object.hasOwn(kinds, name);
  if (!known) {
    const message = `name: expected one of ${[...modelNames, ...registered.keys()].join(", ")}, got ${describe(name)}`;
    throw new DlfsError(ErrorCode.argument, source, message);
  }
  const kind = kinds[name as ModelConfig["name"]];
  checkFields(config, kind.fields, source);
  check(classes !== undefined, source, () => "classes: expected the number of classes, got nothing");
  return kind.make(config as never);
}
