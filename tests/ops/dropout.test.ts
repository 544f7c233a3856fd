import { dropoutCases } from "./cases/dropout";
import { describeCases } from "./check";

describeCases("dropout", dropoutCases);
