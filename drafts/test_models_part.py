def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_recipe_is_measured_and_shown():
    measured = json.loads((SCRIPTS / "models.json").read_text())["models"]
    published = json.loads((SCRIPTS / "published.json").read_text())
    assert measured.keys() == set(load(SCRIPTS / "measure_models.py").recipes()) >= published.keys()
    page = load(ROOT / "docs" / "hooks" / "models.py")
    shown = "\n".join(page.table(name) for name in ("ade20k", "cityscapes"))
    assert all(f"| `{recipe.partition(':')[2]}` |" in shown for recipe in measured)
    assert "| 48.3 / 49.3 (FASeg, table 1) |" in shown and "| 80.5 (FASeg, table 2) |" in shown


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ade20k:r50", "ade20k:dinov3_s", "ade20k:convnext_t"])
def test_the_figures_are_those_of_the_summary(recipe):
    figures = json.loads((SCRIPTS / "models.json").read_text())["models"][recipe]
    name, _, variant = recipe.partition(":")
    summary = summarize(load_config(f"configs/{name}.py:{variant}"), (512, 512))
    assert (figures["parameters"], figures["multiply_adds"]) == (summary.parameters, summary.multiply_adds)
