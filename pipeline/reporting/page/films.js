// Plays the film of a card: while a mouse is over it or the keyboard has come to it, and after a tap.
"use strict";

function films() {
  // Who asks for less motion starts each film with a click or with Enter.
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  for (const card of document.querySelectorAll(".card")) {
    const video = card.querySelector("video");
    if (!video) continue;
    const play = () => video.play().catch(() => {});
    const stop = () => video.pause();
    const toggle = () => (video.paused ? play() : stop());
    // A tap is also an enter, a leave and a focus: only its click counts.
    const hover = (action) => (event) => event.pointerType === "mouse" && action();
    if (!calm) {
      card.addEventListener("pointerenter", hover(play));
      card.addEventListener("focusin", () => card.matches(":focus-visible") && play());
    }
    card.addEventListener("pointerleave", hover(stop));
    card.addEventListener("focusout", stop);
    card.addEventListener("click", toggle);
    card.addEventListener("keydown", (event) => event.key === "Enter" && toggle());
  }
}

films();
