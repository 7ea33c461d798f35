"""Small pictures to pick from: buttons, so that keys and screen readers reach them."""

import ipywidgets as widgets

from xai_utils import plots
from xai_utils.widgets.drawing import address

A_PAGE = 12


class Thumbnails:
    """A page of `A_PAGE` images of a list, with buttons to turn it. `picked(item)` is called for a click.

    Only the pictures of the page that is shown are made. An item names its picture for good: each is made once.
    """

    def __init__(self, picked):
        self._picked, self._items, self._make, self._chosen = picked, (), None, None
        self._first, self._made, self._looks = 0, {}, widgets.HTML(layout={"display": "none"})
        self.buttons = [widgets.Button() for _ in range(A_PAGE)]
        self.earlier, self.later = (
            widgets.Button(description=word, layout={"width": "50%"}) for word in ("◂ earlier", "later ▸")
        )
        self._grid, self._turn = widgets.Box(self.buttons), widgets.HBox([self.earlier, self.later])
        self._grid.add_class("xai-thumbnails")
        self._name = f"xai-{self._grid.model_id}"
        self._grid.add_class(self._name)
        for place, button in enumerate(self.buttons):
            button.add_class(f"at-{place}")
            button.on_click(lambda _, place=place: self._picked(self._items[self._first + place]))
        self.earlier.on_click(lambda _: self._show(self._first - A_PAGE))
        self.later.on_click(lambda _: self._show(self._first + A_PAGE))
        self.view = widgets.VBox([self._looks, self._grid, self._turn])

    def show(self, items, chosen, make):
        """The page of `items` with the one that is `chosen`; make(item): its words and a function for its picture."""
        self._items, self._make, self._chosen = items, make, chosen
        self.view.layout.display = "" if len(items) > 1 else "none"
        place = items.index(chosen) if chosen in items else 0
        self._show(place - place % A_PAGE)

    def _show(self, first):
        self._first, rules = first, []
        page = self._items[first : first + A_PAGE]
        for place, button in enumerate(self.buttons):
            button.layout.display = "" if place < len(page) else "none"
            if place >= len(page):
                continue
            item, chosen = page[place], page[place] == self._chosen
            words, draw = self._make(item)
            button.description = words + (", shown" if chosen else "")
            (button.add_class if chosen else button.remove_class)("chosen")
            if item not in self._made:
                self._made[item] = address(plots.encoded(draw().thumbnail(), "jpeg"), "image/jpeg")
            rules.append(f".{self._name} .at-{place} {{ background-image: url({self._made[item]}) }}")
        self._looks.value = f"<style>{''.join(rules)}</style>"
        self._turn.layout.display = "" if len(self._items) > A_PAGE else "none"
        self.earlier.disabled, self.later.disabled = first == 0, first + A_PAGE >= len(self._items)
