import { boxCases } from "./cases/boxes";
import { describeCases } from "./check";

describeCases("anchors, boxes, matching", boxCases);
