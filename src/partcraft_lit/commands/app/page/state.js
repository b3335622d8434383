// What this tab has: kept in its own session storage, so that a reload loses nothing and two tabs share nothing.

const KEY = "partcraft";
const START = {
  run: null,
  slots: {}, // part -> [{part, code, weight, from, thumb}]
  locks: {},
  not: [],
  before: null, // null: the model's own words, as below
  after: null,
  count: 4,
  seed: 0,
  steps: null, // null: the model's own
  guidance: null,
  history: [],
};

export const state = { ...structuredClone(START), ...read() };
const listeners = new Set();

function read() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) || {};
  } catch {
    return {};
  }
}

/** Changes the state, stores it and tells everybody; `why` names the change. */
export function update(change, why = "composition") {
  Object.assign(state, change);
  try {
    sessionStorage.setItem(KEY, JSON.stringify(state));
  } catch {
    state.history = state.history.slice(0, 5); // the storage of a tab is full
  }
  for (const listener of [...listeners]) listener(why);
}

/** Calls `listener(why)` at each change, until the signal is aborted. */
export function onChange(listener, signal) {
  listeners.add(listener);
  signal?.addEventListener("abort", () => listeners.delete(listener));
}

export function useRun(run) {
  if (state.run !== run) update({ ...structuredClone(START), run }, "run");
}

export const pieces = () => Object.values(state.slots).flat();

export function setSlot(part, list) {
  const slots = { ...state.slots };
  if (list.length) slots[part] = list;
  else delete slots[part];
  update({ slots });
}

/** Puts a piece into its slot; `beside` keeps those that are there. */
export function pick(piece, beside = false) {
  const there = state.slots[piece.part] || [];
  const others = beside ? there.filter((other) => other.code !== piece.code) : [];
  setSlot(piece.part, [...others, { weight: 1, ...piece }]);
}

export const drop = (part, code) => setSlot(part, (state.slots[part] || []).filter((piece) => piece.code !== code));

/** What the server reads: choices, words, and what is not wanted. */
export function composition() {
  const choice = ({ part, code, weight }) => ({ part, code, weight: weight ?? 1 });
  return {
    choices: pieces().sort((a, b) => a.part - b.part).map(choice),
    before: state.before,
    after: state.after,
    negative: state.not.map(choice),
  };
}
