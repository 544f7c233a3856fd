import { lossCases } from "./cases/losses";
import { describeCases } from "./check";

describeCases("detection losses", lossCases);
