"""The picture of who is named: it has a bar for each group, marks flagged ones, and is there for an empty table too."""

from matplotlib.figure import Figure
from matplotlib.image import imread

from megagpt.config.prepare import RepresentationConfig
from megagpt.prepare.representation import Representation, table
from megagpt.report.representation import MAX_GROUPS, draw


def rows(before, after):
    config = RepresentationConfig(min_documents=2)
    counts = []
    for texts in (before, after):
        representation = Representation(config)
        for text in texts:
            representation.add("web", text)
        counts.append(representation.counts())
    return table(*counts, config)


def drawn(made, path, monkeypatch) -> Figure:
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: (figures.append(figure), save(figure, *args, **kwargs)))
    draw(made, path)
    assert imread(path).std() > 0.01
    return figures[0]


def test_representation_picture_shows_groups_and_flags(tmp_path, monkeypatch):
    figure = drawn(rows(["she is good", "her", "he", "it", "Jews"], ["he", "it", "Jews"]), tmp_path / "chart.png", monkeypatch)
    counts = figure.axes[::2]
    assert [axes.get_title("left") for axes in counts] == ["Gender", "Religion"]
    assert [label.get_text() for label in counts[0].get_yticklabels()] == ["women  (2)", "men  (1)"]
    assert [text.get_text() for text in counts[0].texts] == ["× 0.00"] and not counts[1].texts
    assert [bar.get_width() for bar in counts[1].patches] == [1e6 / 7, 1e6 / 3]


def test_representation_picture_of_many_groups_shows_the_most_named(tmp_path, monkeypatch):
    names = "Germans Italians Russians Turks Kurds Arabs Indians Koreans Somalis Cubans Haitians Mexicans Canadians Australians".split()
    texts = [" ".join([name] * (number + 1)) for number, name in enumerate(names)]
    figure = drawn(rows(texts, texts), tmp_path / "chart.png", monkeypatch)
    assert figure.axes[0].get_title("left") == f"Origin, the {MAX_GROUPS} most named; 2 more"
    assert figure.axes[0].get_yticklabels()[0].get_text() == "australian  (1)"


def test_representation_picture_of_nothing(tmp_path):
    draw([], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").exists()
