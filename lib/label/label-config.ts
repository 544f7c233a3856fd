/** What a project of Label Studio labels: its configuration (https://labelstud.io/tags/rectanglelabels). */
import { type AnnotationStore, cvatLabels } from "../data";
import { writeFileAtomic } from "../formats";
import { DlfsError, ErrorCode } from "../native/error";

/** The one image of a task, and the rectangles that are drawn on it. */
export interface LabelConfig {
  /** Name of the control <RectangleLabels>: `from_name` of results. */
  readonly fromName: string;
  /** Name of <Image>: `to_name` of results. */
  readonly toName: string;
  /** The field of a task's data that has the image's address. */
  readonly field: string;
  /** What a rectangle may be called. */
  readonly labels: readonly string[];
}

type Element = Readonly<Record<string, unknown>>;

/** The elements of that name in what Bun.XML makes of a document, at any depth, in their order. */
function elementsOf(node: unknown, name: string): Element[] {
  if (Array.isArray(node)) return node.flatMap((one) => elementsOf(one, name));
  if (typeof node !== "object" || node === null) return [];
  return Object.entries(node).flatMap(([key, value]) => {
    const own =
      key !== name
        ? []
        : (Array.isArray(value) ? value : [value]).map(
            (one) => (typeof one === "object" && one !== null ? one : {}) as Element,
          );
    return [...own, ...elementsOf(value, name)];
  });
}

const attribute = (element: Element, name: string): string => String(element[`@${name}`] ?? "");

/**
 * The rectangles of a labeling configuration; with several <RectangleLabels>, the first.
 *
 * @throws DlfsError naming what the configuration lacks
 */
export function parseLabelConfig(xml: string): LabelConfig {
  const fail = (message: string): never => {
    throw new DlfsError(ErrorCode.argument, "label_config", message);
  };
  let document: unknown;
  try {
    document = Bun.XML.parse(xml);
  } catch (error) {
    fail(`it is no XML: ${(error as Error).message}`);
  }
  const control =
    elementsOf(document, "RectangleLabels")[0] ?? fail("it has no <RectangleLabels>: boxes are what dlfs finds");
  const [fromName, toName] = [attribute(control, "name"), attribute(control, "toName")];
  const image = elementsOf(document, "Image").find((one) => attribute(one, "name") === toName);
  if (!image) return fail(`<RectangleLabels name="${fromName}"> is of "${toName}", and no <Image> has that name`);
  const value = attribute(image, "value");
  const labels = elementsOf(control, "Label").map((one) => attribute(one, "value"));
  const field = /^\$([\w.-]+)$/.exec(value)?.[1];
  return {
    fromName,
    toName,
    field: field ?? fail(`<Image name="${toName}">: expected a value such as "$image", got "${value}"`),
    labels,
  };
}

/** A configuration for images with boxes of these classes, with the names that dlfs' tasks have. */
export function labelConfigOf(classes: readonly string[]): string {
  const view = {
    Image: { "@name": "image", "@value": "$image", "@zoom": "true" },
    RectangleLabels: { "@name": "label", "@toName": "image", Label: classes.map((name) => ({ "@value": name })) },
  };
  return `${Bun.XML.stringify({ View: view }, null, 2)}\n`;
}

/** Writes, beside a file of labels, what a project or a task must be set up with to take it; the path. */
export async function writeLabelSetup(
  labels: string,
  format: "label-studio" | "cvat" | "cvat-xml",
  store: AnnotationStore,
): Promise<string> {
  const isStudio = format === "label-studio";
  const path = `${labels}.labels.${isStudio ? "xml" : "json"}`;
  const content = isStudio ? labelConfigOf(store.classes().names) : `${JSON.stringify(cvatLabels(store), null, 1)}\n`;
  await writeFileAtomic(path, content);
  return path;
}
