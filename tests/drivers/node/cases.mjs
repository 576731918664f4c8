// Runs the cases of a Node driver and prints a line for each: name, seconds, outcome.

export const APP = process.env.PGAPPNAME;
export const TENANT = process.env.CASES_TENANT;
export const TOKEN = process.env.CASES_TOKEN;
export const OTHER = process.env.CASES_OTHER;
export const ROWS = 1000;
export const ERRORS = ["INSERT INTO items (id) VALUES (1)", "SELECT 1/0", "SELECT nowhere", "SELEC"];

export const sqlstate = (error) => error.code ?? error.cause?.code;

// The SQLSTATE that a promise fails with.
export const stateOf = (promise) => Promise.resolve(promise).then(() => "no error", sqlstate);

export const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export const owners = (list) => list.map((one) => ({ [TENANT]: "own", [OTHER]: "other" })[one] ?? one).join(" ");

const failure = (error) => `${sqlstate(error) ?? error.name}: ${error.message}`.replace(/\s+/g, " ").slice(0, 160);

const print = (...fields) => process.stdout.write(fields.join("\t") + "\n");

export async function run(version, cases) {
    print("version", 0, version);
    const until = Number(process.env.CASES_UNTIL ?? 0) * 1000;
    do {
        for (const one of cases) {
            const start = performance.now();
            let outcome;
            try {
                outcome = await one();
            } catch (error) {
                outcome = failure(error);
            }
            if (outcome !== undefined) {
                const text = typeof outcome === "string" ? outcome : JSON.stringify(outcome);
                print(one.name, ((performance.now() - start) / 1000).toFixed(3), text);
            }
        }
    } while (Date.now() < until);
    process.exit(0);
}
