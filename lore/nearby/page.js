"use strict";
// Names and posts come from strangers: they are set as text, never as markup.
const WORDS = {
  en: {
    ask_tab: "Ask", me_tab: "For me", question: "What do you need?", question_hint: "somewhere quiet to work, open now", ask: "Ask",
    visits: "Your visits (csv or json: place_id or lat and lon, time)", person: "Person", recommend: "Show places", forget: "Forget them",
    private: "The file is read in this page. Its visits are sent with the request and kept nowhere.", visits_read: "{} visits are ready.",
    latest: "Only the latest {} visits are used.", no_visits: "The file has no column time, or neither place_id nor lat and lon.",
    from: "From (latitude, longitude)", from_hint: "click the map", when: "When", when_hint: "now", walk: "Walk (minutes)", around: "Around",
    around_hint: "your position", understood: "Understood as", add: "add a need", reset: "As the question says", map: "Map",
    map_keys: "Map. Arrow keys move it, plus and minus zoom, Enter puts your position in its middle.", zoom_in: "Zoom in",
    zoom_out: "Zoom out", whole: "Show the whole walk", legend: "Click the map to set your position. Drawn from the town's own data.",
    left_out: "{} more are shown when you zoom in.", about: "{} places and posts. Answers come from this town alone, with their evidence.",
    asking: "Looking around …", answer: "Answer", places: "Places", beyond: "Beyond the circle", layers: "What each layer found",
    struck: "{} sentences without evidence struck, {} grades against a computed rule refused.", graph: "graph", vector: "meaning",
    name: "name", near: "near", map_layer: "map", rules: "rules", of: "of {} min", min: "{} min on foot", open: "open", closed: "closed",
    unknown: "hours unknown", until: "until", yours: "Your places now", new_nearby: "New nearby", none: "None.", familiarity: "familiar",
    distance: "near", popularity: "popular", not_known: "not known", rejected: "{} visits could not be used: {}.", you: "your position",
    offline: "The service does not answer. Is it still running?", remove: "Remove", not: "not", "circle-within": "within the walk",
    "circle-beyond": "beyond the walk", "hours-open": "open then", "hours-closed": "closed then", "hours-unknown": "hours unknown",
    "exclusion-kept": "nothing excluded in its name", "company-welcome": "company welcome", open_then: "open then", with: "with",
    bad_from: "Write a position as latitude, longitude: 41.88, -87.63.", seconds: "Answered in {} ms.",
  },
  zh: {
    ask_tab: "提问", me_tab: "为我推荐", question: "你需要什么？", question_hint: "安静的咖啡馆，走路十分钟", ask: "提问",
    visits: "你的到访记录（csv 或 json：place_id 或 lat 和 lon，time）", person: "人员", recommend: "推荐", forget: "清除",
    private: "文件只在本页读取，到访记录随请求发送，不会保存。", visits_read: "已读取 {} 条记录。", latest: "只使用最近 {} 条记录。",
    no_visits: "文件缺少 time 列，或缺少 place_id 或 lat 和 lon。", from: "出发点（纬度, 经度）", from_hint: "点击地图", when: "时间",
    when_hint: "现在", walk: "步行（分钟）", around: "在哪附近", around_hint: "你的位置", understood: "理解为", add: "添加需求",
    reset: "按原问题", map: "地图", map_keys: "地图。方向键移动，加减号缩放，回车把位置设在中心。", zoom_in: "放大", zoom_out: "缩小",
    whole: "显示整个步行圈", legend: "点击地图设定位置。地图由本城数据绘制。", left_out: "放大后还可看到 {} 处。",
    about: "{} 个地点与帖子。答案只来自本城数据，并附证据。", asking: "正在查找……", answer: "回答", places: "地点", beyond: "范围之外",
    layers: "各层找到的结果", struck: "删去无证据的句子 {} 句，拒绝与规则相反的评级 {} 个。", graph: "图谱", vector: "语义", name: "名称",
    near: "就近", map_layer: "地理", rules: "规则", of: "共 {} 分钟", min: "步行 {} 分钟", open: "营业中", closed: "已打烊",
    unknown: "营业时间未知", until: "至", yours: "现在适合你的熟悉地点", new_nearby: "附近的新地点", none: "没有。", familiarity: "熟悉",
    distance: "距离近", popularity: "热门", not_known: "未知", rejected: "{} 条记录无法使用：{}。", you: "你的位置",
    offline: "服务没有回应，是否仍在运行？", remove: "移除", not: "不要", "circle-within": "在步行范围内", "circle-beyond": "超出步行范围",
    "hours-open": "届时营业", "hours-closed": "届时不营业", "hours-unknown": "营业时间未知", "exclusion-kept": "名称不含排除项",
    "company-welcome": "欢迎同行者", open_then: "要营业", with: "同行", bad_from: "位置写作 纬度, 经度：41.88, -87.63。", seconds: "用时 {} 毫秒。",
  },
};
const KNOWN = JSON.parse(document.body.dataset.known), SHOWN_HITS = 10, EARTH = 111195;
const $ = id => document.getElementById(id), SVG = "http://www.w3.org/2000/svg";
const state = {lang: (navigator.language || "en").startsWith("zh") ? "zh" : "en", at: KNOWN.middle, needs: null, reply: null, circle: null,
  visits: [], people: new Map(), pins: [], shapes: null, view: {lat: KNOWN.middle[0], lon: KNOWN.middle[1], metres: 3000}};

const t = (key, ...values) => values.reduce((text, value) => text.replace("{}", () => value), WORDS[state.lang][key] ?? key);
// What turns the direction of a line, or cannot be seen, becomes a visible sign.
const plain = text => String(text ?? "").replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]+/g, "\ufffd");
function el(tag, attributes = {}, ...children) {
  const drawn = ["svg", "g", "path", "circle", "text", "title"].includes(tag), one = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) one.addEventListener(name.slice(2), value); else if (value !== null) one.setAttribute(name, value);
  }
  one.append(...children.filter(child => child !== null));
  return one;
}
const bdi = text => el("bdi", {}, plain(text));

// The map: x and y are pixels around the middle of the view; a town is small enough to be flat.
const box = () => $("map").getBoundingClientRect();
const scale = () => Math.min(box().width, box().height) / state.view.metres;
const narrow = lat => Math.max(Math.cos(lat * Math.PI / 180), .01);
const turn = degrees => ((degrees + 540) % 360) - 180;
const xy = (lat, lon) => [box_w / 2 + turn(lon - state.view.lon) * EARTH * narrow(state.view.lat) * px, box_h / 2 - (lat - state.view.lat) * EARTH * px];
const place_at = (x, y) => [Math.min(90, Math.max(-90, state.view.lat + (box().height / 2 - y) / EARTH / scale())),
  turn(state.view.lon + (x - box().width / 2) / EARTH / narrow(state.view.lat) / scale())];
let box_w = 0, box_h = 0, px = 1;
const line = points => points.map(([lat, lon], at) => { const [x, y] = xy(lat, lon); return `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`; }).join("");
const FOOD = /^amenity=(cafe|restaurant|bar|pub|fast_food|food_court|ice_cream|biergarten)|^fclass=(cafe|restaurant|bar|pub|fast_food)/;
function group(classes) {
  const all = classes.join(" ");
  if (/natural=(water|bay)|waterway=|landuse=reservoir/.test(all)) return "water";
  if (/leisure=(park|garden|pitch|golf_course|nature_reserve|playground)|landuse=(grass|forest|meadow|cemetery)|natural=wood/.test(all)) return "green";
  if (classes.some(one => FOOD.test(one))) return "food";
  return /^shop=|\bshop=/.test(all) ? "shop" : /leisure=|tourism=/.test(all) ? "leaf" : "other";
}
function draw() {
  ({width: box_w, height: box_h} = box());
  px = scale();
  const svg = el("svg", {viewBox: `0 0 ${box_w} ${box_h}`, "aria-hidden": state.pins.length ? null : "true"}), labels = [];
  for (const one of state.shapes?.outlines ?? []) {
    const closed = one.parts.every(part => part.length > 3 && String(part[0]) === String(part.at(-1)));
    const shape = el("path", {d: one.parts.map(line).join(""), class: `${closed ? "outline" : "line"} ${group([...one.classes, ...one.look])}`});
    svg.append(shape);
    const at = one.parts[0].map(point => xy(...point)), xs = at.map(one => one[0]), ys = at.map(one => one[1]);
    const wide = Math.max(...xs) - Math.min(...xs), x = (Math.max(...xs) + Math.min(...xs)) / 2, y = (Math.max(...ys) + Math.min(...ys)) / 2;
    const free = labels.every(([other_x, other_y]) => Math.abs(other_y - y) > 16 || Math.abs(other_x - x) > 110);
    if (closed && one.name && wide > 7 * one.name.length && x > 0 && x < box_w && y > 0 && y < box_h && free) labels.push([x, y, one.name]);
  }
  const streets = (state.shapes?.streets ?? []).map(([a, b, c, d]) => line([[a, b], [c, d]])).join("");
  if (streets) svg.append(el("path", {class: "casing", d: streets}), el("path", {class: "street", d: streets}));
  const shown = new Set(state.pins.map(pin => pin.place_id)), size = px > .5 ? 4.5 : px > .2 ? 3.2 : 2.2;
  for (const one of state.shapes?.places ?? []) {
    if (shown.has(one.place_id)) continue;
    const [x, y] = xy(one.lat, one.lon);
    svg.append(el("circle", {cx: x, cy: y, r: size, class: `dot ${group(one.classes)}`}, el("title", {}, plain(one.name))));
  }
  for (const [x, y, name] of labels) svg.append(el("text", {x, y, class: "area"}, plain(name)));
  const circle = state.circle ?? {lat: state.at[0], lon: state.at[1], minutes: +$("minutes").value || 15}, [cx, cy] = xy(circle.lat, circle.lon);
  svg.append(el("circle", {cx, cy, r: circle.minutes * KNOWN.metres_per_minute * px, class: "walk"}));
  const [x, y] = xy(...state.at);
  svg.append(el("circle", {cx: x, cy: y, r: 8, class: "you"}, el("title", {}, t("you"))));
  for (const pin of [...state.pins].reverse()) svg.append(drawn_pin(pin));
  const round = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000].find(one => one * px > 50) ?? 100000;
  svg.append(el("path", {class: "scale", d: `M12 ${box_h - 18}v6h${round * px}v-6`}),
    el("text", {class: "scale-text", x: 16, y: box_h - 17}, round < 1000 ? `${round} m` : `${round / 1000} km`));
  const focused = document.activeElement?.closest?.(".pin")?.dataset.id;
  $("map").replaceChildren(svg);
  if (focused) $("map").querySelector(`.pin[data-id="${CSS.escape(focused)}"]`)?.focus({preventScroll: true});
}
function drawn_pin(pin) {
  const [x, y] = xy(pin.lat, pin.lon), pick = () => { select(pin.place_id); $(`card-${pin.number}`)?.scrollIntoView({block: "nearest", behavior: "smooth"}); };
  return el("g", {class: `pin${pin.known ? " known" : ""}${pin.place_id === state.on ? " on" : ""}`, transform: `translate(${x} ${y})`, tabindex: 0, role: "button",
    "data-id": pin.place_id, "aria-label": `${pin.number}: ${plain(pin.name)}`, onclick: event => { event.stopPropagation(); pick(); },
    onkeydown: event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); pick(); } }},
  el("path", {d: "M0 0C-4-8-13-12-13-21a13 13 0 1 1 26 0c0 9-9 13-13 21z"}), el("text", {y: -17}, String(pin.number)),
  el("text", {class: "label", x: 17, y: -17}, plain(pin.name)));
}
let fetching = null, later = 0;
function moved() {
  draw();
  clearTimeout(later);
  later = setTimeout(async () => {
    const corners = [place_at(0, box().height), place_at(box().width, 0)].flat().map(one => one.toFixed(6));
    fetching?.abort();
    fetching = new AbortController();
    try {
      const reply = await fetch(`map?bbox=${corners}`, {signal: fetching.signal});
      if (!reply.ok) return;
      state.shapes = await reply.json();
      const more = state.shapes.left_out.places + state.shapes.left_out.outlines;
      $("left-out").textContent = more ? t("left_out", more.toLocaleString(state.lang)) : "";
      draw();
    } catch (error) { if (error.name !== "AbortError") throw error; }
  }, 150);
}
function zoom(factor) { state.view.metres = Math.min(200000, Math.max(150, state.view.metres * factor)); moved(); }
function show_walk() {
  const circle = state.circle ?? {lat: state.at[0], lon: state.at[1], minutes: +$("minutes").value || 15};
  const points = state.pins.filter(pin => pin.beyond || pin.known), far = Math.max(circle.minutes * KNOWN.metres_per_minute,
    ...points.map(pin => EARTH * Math.hypot(pin.lat - circle.lat, turn(pin.lon - circle.lon) * narrow(circle.lat))).filter(one => one < 3 * circle.minutes * KNOWN.metres_per_minute));
  state.view = {lat: circle.lat, lon: circle.lon, metres: 2.25 * far};
  moved();
}
function move_to(lat, lon) {
  state.at = [+lat.toFixed(5), +lon.toFixed(5)];
  $("from").value = state.at.join(", ");
  state.circle = null;
  draw();
}
function select(id) {
  state.on = id;
  for (const one of document.querySelectorAll("[data-id]")) one.classList.toggle("on", one.dataset.id === id);
}

// Asking
async function send(path, body) {
  $("error").hidden = true;
  $("status").textContent = t("asking");
  try {
    const reply = await fetch(path, {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body)});
    const said = await reply.json();
    if (!reply.ok) throw new Error(said.error.message);
    $("status").textContent = "";
    return said;
  } catch (error) {
    $("status").textContent = "";
    $("error").textContent = error instanceof TypeError ? t("offline") : plain(error.message.replaceAll("\n", " "));
    $("error").hidden = false;
    return null;
  }
}
function common() {
  const found = $("from").value.split(",").map(one => one.trim() === "" ? NaN : +one);
  if (found.length !== 2 || found.some(Number.isNaN)) { $("error").textContent = t("bad_from"); $("error").hidden = false; return null; }
  state.at = found;
  const body = {at: found};
  if ($("when").value.trim()) body.time = $("when").value.trim();
  if ($("minutes").value) body.minutes = +$("minutes").value;
  return body;
}
async function ask() {
  const body = common();
  if (!body) return;
  body.question = $("question").value;
  if ($("around").value.trim() || state.here) body.around = $("around").value.trim();
  if (state.needs) body.needs = state.needs;
  const reply = await send("ask", body);
  if (!reply) return;
  state.reply = reply;
  state.circle = {lat: reply.intent.lat, lon: reply.intent.lon, minutes: reply.intent.minutes};
  state.pins = reply.places.map((one, at) => ({...one, number: at + 1}));
  if (reply.beyond) state.pins.push({...reply.beyond, number: state.pins.length + 1, beyond: true});
  show();
  show_walk();
}
function when_text(iso, from = "") {
  const day = {weekday: iso.slice(0, 10) === from.slice(0, 10) ? undefined : "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23"};
  return new Intl.DateTimeFormat(state.lang, day).format(new Date(iso));
}
function chips(intent) {
  const wanted = intent.needs.filter(need => !need.excluded), words = need => need.key ? KNOWN.needs.find(one => one.key === need.key)?.[state.lang] ?? need.text : `“${need.text}”`;
  const keys = wanted.map(need => need.key ?? need.text);
  const change = needs => { state.needs = needs; $("reset").hidden = false; ask(); };
  const needs = wanted.map((need, at) => el("li", {class: "need"}, bdi(words(need)),
    el("button", {type: "button", "aria-label": `${t("remove")}: ${plain(words(need))}`, onclick: () => change(keys.toSpliced(at, 1))}, "×")));
  const others = intent.needs.filter(need => need.excluded).map(need => el("li", {class: "not"}, `${t("not")} `, bdi(words(need))));
  if (intent.around) {
    needs.push(el("li", {class: "need"}, `${t("around")}: `, bdi(intent.around), el("button", {type: "button", "aria-label": `${t("remove")}: ${plain(intent.around)}`,
      onclick: () => { $("around").value = ""; state.here = true; $("reset").hidden = false; ask(); }}, "×")));
  }
  const said = [t("min", +intent.minutes.toPrecision(3)),
    intent.when && when_text(intent.when) + (intent.open_then ? `, ${t("open_then")}` : ""), intent.companions.length && `${t("with")}: ${intent.companions.join(", ")}`];
  $("chips").replaceChildren(...needs, ...others, ...said.filter(Boolean).map(text => el("li", {}, bdi(text))));
  $("add").onchange = () => {
    const typed = $("add").value.trim();
    $("add").value = "";
    if (typed) change([...keys, KNOWN.needs.find(one => one.en === typed || one.zh === typed)?.key ?? typed]);
  };
  for (const [id, value] of [["when", intent.open_then ? when_text(intent.when) : ""], ["minutes", intent.minutes], ["around", intent.around ?? ""]]) {
    $(id).placeholder = plain(value) || t(`${id}_hint`);
  }
  $("understood").hidden = false;
}
function cite(pin) {
  return el("button", {type: "button", class: `cite${pin.known ? " known" : ""}`, "data-id": pin.place_id, "aria-label": `${pin.number}: ${plain(pin.name)}`,
    onclick: () => { select(pin.place_id); [state.view.lat, state.view.lon] = [pin.lat, pin.lon]; moved(); }}, String(pin.number));
}
function cited(text) {
  const letters = id => id.replace(/[^\p{L}\p{N}]/gu, ""), by_id = new Map(state.pins.map(pin => [letters(pin.place_id), pin]));  // an answer cites ids without marks
  return text.split(/(\[[^[\]]+\])/).map(part => part.startsWith("[") && by_id.has(letters(part)) ? cite(by_id.get(letters(part))) : document.createTextNode(plain(part)));
}
function opening(one) {
  const {state: now, until} = one.opening, said = now === "unknown" ? t("unknown") : t(now) + (until ? ` ${t("until")} ${when_text(until, state.reply.intent?.when ?? state.reply.when)}` : "");
  return el("span", {class: now}, said);
}
const metres = value => value < 1000 ? `${Math.max(10, Math.round(value / 10) * 10)} m` : `${(value / 1000).toFixed(1)} km`;
function card(pin, evidence) {
  const kind = (pin.classes ?? [])[0]?.split("=").at(-1).replaceAll("_", " ");
  return el("li", {class: "card", id: `card-${pin.number}`, "data-id": pin.place_id, onmouseenter: () => select(pin.place_id), onfocusin: () => select(pin.place_id)},
    el("h3", {}, cite(pin), bdi(pin.name || kind || pin.place_id), el("span", {class: "small soft"}, plain(kind ?? ""))),
    el("p", {class: "small"}, `${t("min", Math.max(1, Math.round(pin.minutes)))} · ${metres(pin.metres)} · `, opening(pin)),
    el("dl", {class: "evidence"}, ...evidence.flatMap(([name, why, value]) => [el("dt", {}, name), el("dd", {}, why), el("dd", {class: "value"}, value)])));
}
function place_card(pin) {
  const layers = Object.entries(pin.why).map(([name, {score, why}]) => [t(name), bdi(why.replaceAll("->", "→")), name === "near" ? "" : score.toFixed(2)]);
  const walk = `${pin.minutes.toFixed(1)} ${t("of", +state.reply.intent.minutes.toPrecision(3))}`;
  return card(pin, [...layers, [t("map_layer"), walk, metres(pin.metres)], [t("rules"), pin.rules.map(rule => t(rule)).join(" · "), pin.tier ?? ""]]);
}
function show() {
  const reply = state.reply, names = new Map([...(state.shapes?.places ?? []), ...state.pins].map(one => [one.place_id, one.name]));
  if (!reply) return;
  if (reply.your_places) { show_lists(reply); return; }
  chips(reply.intent);
  const layers = Object.entries(reply.layers).map(([name, hits]) => el("div", {}, el("h4", {}, `${t(name)}: ${hits.length}`), el("ol", {},
    ...hits.slice(0, SHOWN_HITS).map(hit => el("li", {}, bdi(names.get(hit.place_id) || hit.place_id), " ", el("span", {class: "soft"}, bdi(hit.why.replaceAll("->", "→"))))))));
  const inside = state.pins.filter(pin => !pin.beyond), outside = state.pins.filter(pin => pin.beyond);
  $("result").replaceChildren(
    el("h2", {}, t("answer")), el("div", {class: "answer", role: "status", lang: reply.intent.language}, ...reply.answer.split("\n").map(text => el("p", {}, ...cited(text)))),
    reply.notes.length ? el("ul", {class: "notes"}, ...reply.notes.map(note => el("li", {}, plain(note)))) : "",
    ...[[inside, "places"], [outside, "beyond"]].flatMap(([pins, title]) => pins.length ? [el("h2", {}, t(title)), el("ol", {class: "places"}, ...pins.map(place_card))] : []),
    el("details", {class: "layers"}, el("summary", {}, t("layers")), ...layers),
    el("p", {class: "small soft"}, `${t("struck", reply.struck, reply.refused)} ${t("seconds", Math.round(1000 * reply.seconds))}`));
}

// For me: the visits are read here, sent with a request, and forgotten with the page.
function table(text) {
  if (/^\s*[[{]/.test(text)) return JSON.parse(text);
  const head = text.slice(0, text.search(/\r?\n|$/)), mark = ["\t", ";", ","].find(one => head.includes(one)) ?? ",";
  const rows = [[""]];
  let quoted = false;
  for (let at = 0; at < text.length; at++) {
    const sign = text[at], cells = rows.at(-1);
    if (quoted ? sign === '"' && text[at + 1] === '"' : false) { cells[cells.length - 1] += '"'; at++; }
    else if (sign === '"' && (quoted || cells.at(-1) === "")) quoted = !quoted;
    else if (quoted) cells[cells.length - 1] += sign;
    else if (sign === mark) cells.push("");
    else if (sign === "\n") rows.push([""]);
    else if (sign !== "\r") cells[cells.length - 1] += sign;
  }
  const names = rows.shift().map(name => name.trim().replace(/^\ufeff/, ""));
  return rows.filter(cells => cells.some(Boolean)).map(cells => Object.fromEntries(names.map((name, at) => [name, cells[at] ?? ""])));
}
async function read_file() {
  forget();
  const file = $("visits").files[0];
  if (!file) return;
  try {
    const rows = table(await file.text()), first = rows[0] ?? {};
    const column = Object.fromEntries(Object.entries(KNOWN.columns).map(([name, known]) => [name, known.find(one => one in first)]));
    if (!column.time || !(column.place_id || column.lat && column.lon)) throw new Error(t("no_visits"));
    const degrees = cell => cell === "" || cell === null || !Number.isFinite(+cell) ? null : +cell;
    for (const row of rows) {
      const visit = {time: typeof row[column.time] === "number" ? row[column.time] : String(row[column.time] ?? "").slice(0, 80)};
      if (column.place_id && row[column.place_id]) visit.place_id = String(row[column.place_id]).slice(0, 200);
      else Object.assign(visit, {lat: degrees(row[column.lat]), lon: degrees(row[column.lon])});
      const person = String(row[column.user] ?? "");
      if (!state.people.has(person)) state.people.set(person, []);
      state.people.get(person).push(visit);
    }
    $("person").replaceChildren(...[...state.people.keys()].map(name => el("option", {value: name}, plain(name))));
    $("person-label").hidden = state.people.size < 2;
    $("me").querySelector(".go").disabled = $("forget").hidden = false;
    count_visits();
  } catch (error) { $("error").textContent = plain(error.message); $("error").hidden = false; }
}
function count_visits() {
  const all = state.people.get($("person").value) ?? [], many = all.length > KNOWN.most_visits;
  state.visits = [...all].sort((a, b) => a.time < b.time ? -1 : 1).slice(-KNOWN.most_visits);
  $("read").textContent = all.length ? (many ? t("latest", KNOWN.most_visits) : t("visits_read", all.length)) : "";
}
function forget() {
  state.people.clear();
  count_visits();
  $("me").querySelector(".go").disabled = $("forget").hidden = $("person-label").hidden = true;
}
async function recommend() {
  const body = common(), reply = body && await send("recommend", {...body, visits: state.visits});
  if (!reply) return;
  state.reply = reply;
  state.circle = {lat: body.at[0], lon: body.at[1], minutes: body.minutes ?? 15};
  state.pins = [...reply.your_places.map(one => ({...one, known: true})), ...reply.new_nearby].map((one, at) => ({...one, number: at + 1}));
  show();
  show_walk();
}
function show_lists(reply) {
  $("understood").hidden = true;
  const bar = value => value === null ? t("not_known") : el("div", {class: "rate", role: "img", "aria-label": value.toFixed(2)}, filled(value));
  const filled = value => { const one = el("i"); one.style.width = `${100 * value}%`; return one; };
  const numbers = pin => ["familiarity", "distance", "popularity"].map(name => [t(name), bar(pin[name]), pin[name] === null ? "" : pin[name].toFixed(2)]);
  const rejected = Object.entries(reply.rejected), lost = rejected.reduce((sum, [, count]) => sum + count, 0);
  const notes = [...reply.notes, ...(lost ? [t("rejected", lost, rejected.map(([why, count]) => `${count} ${why.replaceAll("_", " ")}`).join(", "))] : [])];
  const lists = [["yours", state.pins.filter(pin => pin.known)], ["new_nearby", state.pins.filter(pin => !pin.known)]];
  $("result").replaceChildren(...lists.flatMap(([title, pins]) => [el("h2", {}, t(title)),
    pins.length ? el("ol", {class: "places"}, ...pins.map(pin => card(pin, numbers(pin)))) : el("p", {class: "soft"}, t("none"))]),
  notes.length ? el("ul", {class: "notes"}, ...notes.map(note => el("li", {}, plain(note)))) : "");
}

function speak(lang) {
  state.lang = document.documentElement.lang = lang;
  for (const one of document.querySelectorAll("[data-t]")) one.textContent = t(one.dataset.t);
  for (const one of document.querySelectorAll("[data-p]")) one.placeholder = t(one.dataset.p);
  for (const one of document.querySelectorAll("[data-label]")) one.setAttribute("aria-label", t(one.dataset.label));
  for (const one of document.querySelectorAll("[data-lang]")) one.setAttribute("aria-pressed", one.dataset.lang === lang);
  $("about").textContent = t("about", KNOWN.places.toLocaleString(lang)) + (KNOWN.timezone ? ` ${KNOWN.timezone}.` : "");
  $("needs").replaceChildren(...KNOWN.needs.map(need => el("option", {value: need[lang]})));
  count_visits();
  show();
}
function open_tab(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const on = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !on;
  }
  document.querySelector(".only-ask").hidden = name !== "ask";
  $("understood").hidden = name !== "ask" || !state.reply?.intent;
}
for (const one of document.querySelectorAll("[data-lang]")) one.onclick = () => speak(one.dataset.lang);
for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.onclick = () => open_tab(tab.id.slice(4));
  tab.onkeydown = event => { if (event.key.startsWith("Arrow")) { const other = tab.id === "tab-ask" ? "me" : "ask"; open_tab(other); $(`tab-${other}`).focus(); } };
}
$("ask").onsubmit = event => { event.preventDefault(); ask(); };
$("me").onsubmit = event => { event.preventDefault(); recommend(); };
$("question").oninput = () => { state.needs = null; state.here = false; $("reset").hidden = true; };
$("reset").onclick = () => { $("question").oninput(); ask(); };
$("visits").onchange = read_file;
$("person").onchange = count_visits;
$("forget").onclick = () => { $("visits").value = ""; forget(); state.reply = null; state.pins = []; $("result").replaceChildren(); draw(); };
$("from").onchange = () => { const body = common(); if (body) { $("error").hidden = true; state.circle = null; show_walk(); } };
$("minutes").onchange = () => { if (state.circle) state.circle.minutes = +$("minutes").value || 15; draw(); };
$("in").onclick = () => zoom(1 / 1.5);
$("out").onclick = () => zoom(1.5);
$("whole").onclick = show_walk;
let held = null;
$("map").onpointerdown = event => { if (event.button === 0 && !event.target.closest(".pin")) held = {x: event.clientX, y: event.clientY, lat: state.view.lat, lon: state.view.lon, far: false}; };
window.onpointermove = event => {
  if (!held) return;
  const dx = event.clientX - held.x, dy = event.clientY - held.y;
  held.far ||= Math.hypot(dx, dy) > 5;
  if (!held.far) return;
  state.view.lat = Math.min(89, Math.max(-89, held.lat + dy / EARTH / scale()));
  state.view.lon = turn(held.lon - dx / EARTH / narrow(held.lat) / scale());
  moved();
};
window.onpointerup = event => {
  if (held && !held.far) { const {left, top} = box(); move_to(...place_at(event.clientX - left, event.clientY - top)); }
  held = null;
};
$("map").addEventListener("wheel", event => { if (event.ctrlKey || event.metaKey) { event.preventDefault(); zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2); } }, {passive: false});
$("map").onkeydown = event => {
  const step = state.view.metres / EARTH / 6, arrows = {ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (arrows) { state.view.lat = Math.min(89, Math.max(-89, state.view.lat + step * arrows[0])); state.view.lon = turn(state.view.lon + step * arrows[1] / narrow(state.view.lat)); moved(); }
  else if (event.key === "+" || event.key === "=") zoom(1 / 1.5);
  else if (event.key === "-") zoom(1.5);
  else if (event.key === "Enter") move_to(state.view.lat, state.view.lon);
  else return;
  event.preventDefault();
};
new ResizeObserver(moved).observe($("map"));
move_to(...KNOWN.middle);
speak(state.lang);
show_walk();
