"use strict";
(() => {
  const block = document.getElementById("data");
  if (!block) return;
  const data = JSON.parse(block.textContent);
  const find = (id) => document.getElementById(id);
  const slider = find("slider"), play = find("play"), figure = find("entropy");
  const words = [...find("reading").children];
  const cells = [...document.querySelectorAll("#cells .cell")];
  const cursor = figure.querySelector("[id$='cursor']");
  const [from, to] = [Number(figure.dataset.from), Number(figure.dataset.to)];
  let frame = data.frames[data.start], chosen = 0, timer = 0;

  // Writes one candidate into a line: its text, the mark of a word's beginning, its share as a bar and as a number.
  function fill(line, position, rank, digits) {
    const [begins, text] = data.pieces[frame.tokens[position][rank]];
    const percent = frame.percent[position][rank];
    const given = data.fixed[position];
    line.style.setProperty("--share", `${percent}%`);
    line.classList.toggle("gone", rank > 0 && (given || percent < 0.5));
    line.firstChild.textContent = text;
    line.firstChild.className = begins ? "begins" : "";
    line.lastChild.textContent = given ? "" : percent.toFixed(digits);
  }

  function showCandidates(position) {
    const count = data.fixed[position] ? 1 : frame.tokens[position].length;
    const state = data.fixed[position] ? "given" : `${frame.entropy[position].toFixed(2)} nats open`;
    find("position").textContent = `Position ${position + 1} of ${cells.length}, ${state}`;
    const lines = Array.from({ length: count }, (_, rank) => {
      const line = document.createElement("li");
      line.className = "line";
      line.append(document.createElement("b"), document.createElement("i"));
      fill(line, position, rank, 1);
      line.classList.remove("gone");
      if (!data.fixed[position]) line.lastChild.textContent += " %";
      return line;
    });
    find("list").replaceChildren(...lines);
  }

  function write(index) {
    frame = data.frames[index];
    words.forEach((word, position) => {
      const [begins, text] = data.pieces[frame.tokens[position][0]];
      const open = (frame.entropy[position] / data.most).toFixed(3);
      word.textContent = (begins ? " " : "") + text;
      word.style.setProperty("--open", open);
      cells[position].style.setProperty("--open", open);
      [...cells[position].children].forEach((line, rank) => fill(line, position, rank, 0));
    });
  }

  function show(index) {
    write(index);
    const numbers = [frame.sigma.toPrecision(3), frame.u.toFixed(2), frame.mean.toFixed(2)];
    ["sigma", "time", "mean"].forEach((id, i) => (find(id).textContent = numbers[i]));
    slider.setAttribute("aria-valuetext", `σ ${numbers[0]}, u ${numbers[1]}, mean entropy ${numbers[2]} nats`);
    if (cursor) cursor.setAttribute("transform", `translate(${(1 - frame.u) * (to - from)} 0)`);
    showCandidates(chosen);
  }

  function choose(position) {
    cells[chosen].tabIndex = -1;
    cells[chosen].setAttribute("aria-pressed", "false");
    chosen = position;
    cells[chosen].tabIndex = 0;
    cells[chosen].setAttribute("aria-pressed", "true");
    showCandidates(chosen);
  }

  // The text of noise is longer or shorter than the sentence: keep room for the longest, so that nothing below moves.
  function keepRoom() {
    const reading = find("reading");
    reading.style.minHeight = "";
    let most = 0;
    for (let index = 0; index < data.frames.length; index += 6) {
      write(index);
      most = Math.max(most, reading.offsetHeight);
    }
    reading.style.minHeight = `${most}px`;
    show(Number(slider.value));
  }

  function stop() {
    window.clearInterval(timer);
    timer = 0;
    play.firstChild.textContent = "▶";
    play.setAttribute("aria-label", "Play from noise to text");
  }

  play.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.firstChild.textContent = "❙❙";
    play.setAttribute("aria-label", "Pause");
    show(Number(slider.value));
    timer = window.setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show(Number(slider.value));
      if (slider.value === slider.max) stop();
    }, 130);
  });
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });

  cells.forEach((cell, position) => {
    cell.tabIndex = -1;
    cell.setAttribute("aria-pressed", "false");
    cell.addEventListener("focus", () => choose(position));
    cell.addEventListener("click", () => choose(position));
    cell.addEventListener("pointerenter", () => showCandidates(position));
    cell.addEventListener("pointerleave", () => showCandidates(chosen));
  });
  find("cells").addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1, Home: -cells.length, End: cells.length }[event.key];
    if (!move) return;
    event.preventDefault();
    cells[Math.min(Math.max(chosen + move, 0), cells.length - 1)].focus();
  });

  find("candidates").hidden = false;
  choose(Math.max(frame.entropy.findIndex((value, i) => !data.fixed[i] && value > data.most / 3), 0));
  keepRoom();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) keepRoom();
    width = window.innerWidth;
  });
})();
