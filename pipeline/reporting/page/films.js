// Plays the film of a card that is pointed at.
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
    // On a screen without a pointer a tap is all there is.
    card.addEventListener("click", () => (video.paused ? play() : stop()));
  }
}

films();
