import { describeCases } from "./check";
import { boxCases } from "./cases/boxes";

describeCases("anchors, boxes, matching, losses", boxCases);
