// Plays the film of the card under the pointer.
"use strict";

function films() {
  for (const card of document.querySelectorAll(".card")) {
    const video = card.querySelector("video");
    if (!video) continue;
    const play = () => video.play().catch(() => {});
    const stop = () => video.pause();
    card.addEventListener("pointerenter", play);
    card.addEventListener("pointerleave", stop);
    card.addEventListener("focusin", play);
    card.addEventListener("focusout", stop);
    // A touch screen has only taps.
    card.addEventListener("click", () => (video.paused ? play() : stop()));
  }
}

films();
