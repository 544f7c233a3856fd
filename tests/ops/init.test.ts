import { describeCases } from "./check";
import { initCases } from "./cases/init";

describeCases("initialisation", initCases);
