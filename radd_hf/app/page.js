// What only a browser can do: insert at the cursor, copy, save files, scroll, play again, come back. Nothing is sent to the server.
() => {
    const only = (selector) => document.querySelector(selector);

    // Puts a blank of so many tokens at the cursor, in place of what is selected. A blank that the cursor stands in, or
    // that is selected in part, is replaced whole.
    function insertBlank(size) {
        const field = only("#text textarea");
        const count = Math.max(1, Math.round(Number(size)) || 1);
        const blank = count === 1 ? "[MASK]" : `[MASK:${count}]`;
        let { selectionStart: start, selectionEnd: end } = field;
        for (const found of field.value.matchAll(/\[MASK(:\d+)?\]/g)) {
            const after = found.index + found[0].length;
            if (found.index < end && start < after) {
                [start, end] = [Math.min(start, found.index), Math.max(end, after)];
            }
        }
        field.focus();
        field.setRangeText(blank, start, end, "end");
        field.dispatchEvent(new Event("input", { bubbles: true }));
    }

    // Scrolls to a result where the fields fill the window, as on a phone.
    function show(id) {
        const result = document.getElementById(id);
        const top = result.getBoundingClientRect().top;
        if (window.innerWidth < 768 && (top < 0 || top > window.innerHeight / 4)) {
            result.scrollIntoView({ behavior: "smooth", block: "start" });
        }
    }

    // Only pages of this machine and encrypted ones may use the clipboard, and a reader can forbid it to them. So there
    // is the older way, by a field.
    async function copy(text) {
        try {
            await navigator.clipboard.writeText(text);
            return;
        } catch { /* below */ }
        const field = document.createElement("textarea");
        field.value = text;
        document.body.append(field);
        field.select();
        document.execCommand("copy");
        field.remove();
    }

    function save(content, type, name) {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([content], { type }));
        link.download = name;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }

    const actions = {
        copy: async (sample, button) => {
            await copy(sample.dataset.text);
            button.textContent = "Copied";
            setTimeout(() => { button.textContent = "Copy"; }, 1500);
        },
        text: (sample) => save(sample.dataset.text, "text/plain;charset=utf-8", "radd.txt"),
        picture: (sample) => save(sample.querySelector("iframe").srcdoc, "text/html;charset=utf-8", "radd.html"),
        again: (boards) => boards.replaceWith(boards.cloneNode(true)),
    };

    document.addEventListener("click", (event) => {
        const button = event.target.closest("[data-radd]");
        if (button) actions[button.dataset.radd](button.closest(".radd-sample") ?? only(".radd-puzzles"), button);
    });
    // A browser that goes back shows the page as it was left, but the page's connections are closed.
    window.addEventListener("pageshow", (event) => { if (event.persisted) window.location.reload(); });
    window.radd = { insertBlank, show };
}
