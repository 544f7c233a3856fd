export { type CocoExportOptions, exportCoco } from "./coco-export";
export { exportCsv, importCsv } from "./csv";
export { cvatLabels, exportCvatXml, importCvatXml } from "./cvat-xml";
export {
  type ExportDatasetOptions,
  type ExportFormat,
  exportDataset,
  exportFormats,
  type ImportDatasetOptions,
  type ImportFormat,
  importDataset,
  importFormats,
} from "./formats";
export { exportLabelStudio, importLabelStudio, type LabelStudioImportOptions, studioShapes } from "./label-studio";
export {
  isSameBox,
  type LabelStudioOptions,
  type StudioTask,
  type StudioTaskOptions,
  studioTask,
} from "./label-studio-task";
export type { NamedImportOptions } from "./named-content";
export { exportVoc, importVoc, type VocOptions } from "./voc";
export type { ExportOptions, ExportReport } from "./walk";
export { exportYolo, importYolo, readYoloConfig, type YoloConfig, type YoloImportOptions } from "./yolo";
