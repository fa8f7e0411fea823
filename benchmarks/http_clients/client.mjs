// POST the file named by each line of the standard input; print the status or the error.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";

const headers = { "Content-Type": "image/jpeg" };
for await (const file of createInterface({ input: process.stdin })) {
  try {
    const body = await readFile(file);
    const response = await fetch(process.argv[2], { method: "POST", headers, body });
    await response.arrayBuffer();
    console.log(response.status);
  } catch (error) {
    console.log(`${error}: ${error.cause}`);
  }
}
