"""The sentences of reading in the chapter Beyond the paper hold in the committed records of the miniature."""

from statistics import fmean

import pandas as pd
import pytest
import torch

from report import beyond, readings, tables, variations
from report.mechanism import spectrum
from report.notebooks import ROOT
from report.overview import TITLES
from report.pages import Page
from report.paper import paper_deltas, read_paper
from report.records import load_records
from simo.merging.field import FROM_IMAGES
from simo.merging.task_vectors import TaskVector

DATASETS = ("nyuv2", "cityscapes", "taskonomy")
BEHIND = {
    "nyuv2": ["wudi"],
    "cityscapes": ["wudi", "equal_norms"],
    "taskonomy": ["wudi"],
}  # all others
MAPS = ("shift", "scales", "rotation")


@pytest.fixture(scope="module", params=DATASETS)
def page(request):
    """The committed records of each data set."""
    return Page(request.param, "records/miniature")


@pytest.fixture(scope="module")
def curves(page):
    """Mean Δ over seeds of every way to realign, one column a number of images that all ways were given."""
    found = page.derive("closed_form", beyond.realignment_curves)
    return found.groupby(["method", "images"]).delta.mean().unstack().dropna(axis="columns")


@pytest.fixture(scope="module")
def shares(page):
    """Mean over seeds of CKA and explained shares after the last block, by encoder, method and task."""
    found = page.derive("mechanism", variations.feature_shares)
    return found[found.block == found.block.max()].groupby(["encoder", "method", "task"]).share.mean()


def test_closed_form_is_better_than_labelled_heads_and_distillation(curves):
    """At every number of images, on every data set."""
    assert len(curves.columns) == 4
    assert (curves.loc["closed form"] > curves.loc["heads"]).all()
    assert (curves.loc["closed form"] > curves.loc["distillation"]).all()


def test_its_lead_is_largest_where_images_are_few(curves):
    """Over heads it is largest at 4 or 16 images."""
    lead = curves.loc["closed form"] - curves.loc["heads"]
    assert lead.idxmax() in (4, 16)


def test_training_heads_on_from_it_pays_with_all_images_only(page, curves):
    """And then on two data sets of three."""
    gain = curves.loc["closed form + heads"] - curves.loc["closed form"]
    assert (gain.iloc[:-1] < 0).all()
    assert (gain.iloc[-1] > 0) == (page.dataset != "taskonomy")


def test_with_few_images_labelled_training_overfits(page, curves):
    """On NYUv2, from 4 images, it ends below the merged model as it is; closed form never does."""
    bare = page.beside("closed_form").printed.groupby("model").mean()["task_arithmetic"]
    assert (curves.loc[["heads", "representation"], 4] < bare).all() == (page.dataset == "nyuv2")
    assert (curves.loc["closed form"] > bare).all()


def test_closed_form_is_level_with_representation_realignment_or_ahead(page, curves):
    """With all images: level on NYUv2, ahead by more than a point on the other two."""
    lead = curves.loc["closed form"].iloc[-1] - curves.loc["representation"].iloc[-1]
    assert abs(lead) < 0.5 if page.dataset == "nyuv2" else lead > 1


def test_the_bar_of_ten_is_met_where_labels_are_few():
    """Against heads with 4 images on two data sets, with 16 and 64 on all three; with all labels on none.

    Against representation realignment wherever up to 64 images set a mark, and with all on two.
    """
    pages = [Page(name, "records/miniature") for name in DATASETS]
    curves = {page.dataset: page.derive("closed_form", beyond.realignment_curves) for page in pages}
    bare = {page.dataset: page.beside("closed_form").loc["task_arithmetic"].printed.mean() for page in pages}

    def read(labelled):
        table = beyond.savings(curves, bare, labelled)
        table.index = table.index.str.extract(r"(\d+) labelled")[0].astype(int)
        return table

    heads, representation = read("heads"), read("representation")
    table = beyond.savings(curves, bare)
    met = set(table.index[table["a factor of 10 in either"] == "yes"].str.removesuffix(" labelled images"))
    on_all = {f"{TITLES[name]}, {count}" for name in DATASETS for count in (16, 64)}
    assert met == {"Cityscapes, 4", "Taskonomy, 4"} | on_all
    assert heads.loc[256, "times fewer images"].astype(float).between(2.5, 5.5).all()
    assert heads.loc[256, "times faster"].astype(float).between(7.5, 9.5).all()
    few = heads.loc[[4, 16], "times fewer images"]
    assert (few[few != ""].astype(float) < 10).all()
    marks = representation[representation["a factor of 10 in either"] != ""]
    met = (marks["a factor of 10 in either"] == "yes").groupby(level=0).sum()
    assert met.to_dict() == {4: 2, 16: 3, 64: 3, 256: 2}
    assert marks.loc[256, "times faster"].astype(float).between(8.5, 12.5).all()


def test_narrower_maps_fall_far_short(curves):
    """With all images scales do most of the three, and leave most of what closed form repairs."""
    last = curves.iloc[:, -1]
    assert last[list(MAPS)].idxmax() == "scales"
    assert last["closed form"] - last["scales"] > 10


def test_a_linear_map_explains_most_of_every_expert(shares):
    """Four fifths or more, most often nine tenths."""
    assert (shares["merged", "mapped linearly"] > 0.8).all()


def test_as_they_are_features_fit_some_heads_only(page, shares):
    """They explain two thirds for some experts, half or less for others, less than nothing for three."""
    fit = shares["merged", "as they are"]
    strange = [name for name in fit.index if fit[name] < -5]
    kept = [name for name in fit.index if fit[name] > 2 / 3]
    assert (strange, kept) == {
        "nyuv2": ([], ["normals", "segmentation"]),
        "cityscapes": (["disparity"], ["parts", "segmentation"]),
        "taskonomy": (["autoencoder", "depth"], []),
    }[page.dataset]
    assert (fit.drop(kept) < 0.505).all()
    means = page.frame.loc["task_arithmetic"].mean()
    for name in fit.index:  # what the head was given and what it makes of it
        assert (means[f"{name} %"] < 15) == (name in strange)


def test_collapse_is_uneven_and_closed_form_repairs_it_where_it_is_worst(page):
    """What keeps less than a seventh comes back to three quarters or more; a loss may be one task's."""
    table = page.derive("closed_form", beyond.repairs_table).map(lambda cell: float(cell.split()[0]))
    table = table.filter(like=" %").drop(columns="Δ printed, %")
    lost = 100 - table.loc["merged"]
    worst = lost[lost > 85].index
    assert (table.loc["closed form", worst] > 75).all()
    if page.dataset == "cityscapes":
        assert 0.55 < lost["disparity %"] / lost.sum() < 0.65
        change = table.loc[["shift", "rotation"]] - table.loc["merged"]
        assert (change["parts %"] < -change.drop(columns="parts %").sum(axis=1)).all()
    back = (table.loc["TALL-masks"] - table.loc["merged"]) / lost
    if page.dataset == "taskonomy":
        assert back[["normals %", "edges %", "keypoints %"]].between(0.4, 0.6).all()
        assert (back[["autoencoder %", "depth %"]] < 0.2).all()


def test_pretrained_features_explain_almost_as_much(page, shares):
    """Yet heads realigned on them are far worse than on merged ones."""
    gain = shares["merged", "mapped linearly"] - shares["pretrained", "mapped linearly"]
    assert gain.mean() < 0.06
    means = page.frame.printed.groupby("model").mean()
    assert means["task_arithmetic+heads"] - means["pretrained+heads"] > 5


def test_on_photographs_merging_brings_the_features_themselves_nearer():
    """What the page on why it breaks says of them, beside the miniature, where a map makes up for it."""
    page = Page("nyuv2", "records/photos")
    found = page.derive("mechanism", variations.feature_shares)
    last = found[found.block == found.block.max()].groupby(["encoder", "method", "task"]).share.mean()
    merged = last["merged", "as they are"]
    assert merged.max() < 0.5
    assert merged["normals"] < 0.1
    assert last["merged", "mapped linearly"].between(0.7, 0.8).all()
    assert last["pretrained", "mapped linearly"].max() < 0.55
    table = page.derive("closed_form", beyond.repairs_table).map(lambda cell: float(cell.split()[0]))
    assert table.loc["merged"].drop("Δ printed, %").idxmin() == "depth %"
    assert merged.idxmin() == "normals"
    left = table["Δ printed, %"] / table.loc["merged", "Δ printed, %"]
    assert left[["shift", "scales", "rotation"]].min() > 0.74
    assert left["closed form"] < 0.2


def test_adapters_do_not_bring_features_back(shares):
    """Representation realignment leaves CKA to the experts no higher than it was, after the last block."""
    assert shares["merged + adapters", "CKA"].mean() < shares["merged", "CKA"].mean()


def test_five_tasks_on_photographs_collapse_as_in_the_paper():
    """What README and pages say: deeper than NYUv2's three, within ten points of the paper's, half undone."""
    five, three = (
        Page(study, "records/photos").frame.printed.unstack("model")
        for study in ("taskonomy_photos", "nyuv2")
    )
    theirs = paper_deltas("taskonomy", read_paper())
    for method in ("task_arithmetic", "ties"):
        assert five[method].max() < three[method].min()
        assert (five[method] - theirs[method]).abs().max() < 10
        assert (five[method] < five.constant).all()
        assert (tables.recovered(five, method, "heads", "constant") < 50).all()
        assert (tables.recovered(five, method, "representation") > 50).all()
        assert (tables.recovered(five, method, "heads") > 50).sum() == 2
        for kind in ("heads", "representation"):
            assert (five[f"{method}+{kind}"] > five[f"pretrained+{kind}"] + 6).all()
    assert len(five) == 3  # of which README, photographs and changelog speak


def test_five_tasks_need_no_label():
    """On photographs closed form, from an α that no label chose, is ahead of both fixes with all labels."""
    page = Page("taskonomy_photos", "records/photos")
    chosen = page.derive("unlabelled_alpha", beyond.chosen_alphas)
    own = chosen[(chosen.rule == "residual") & (chosen.method == "task_arithmetic")].set_index("seed").delta
    delta = page.frame.printed.unstack("model")
    assert (own > delta["task_arithmetic+heads"] + 5).all()
    assert (own > delta["task_arithmetic+representation"]).all()


def test_on_photographs_closed_form_leads_from_few_images_only():
    """What the pages' numbers show: ahead up to 64 images; level with heads from 256; behind from all."""
    curves = Page("nyuv2", "records/photos").derive("closed_form", beyond.realignment_curves)
    means = curves.groupby(["method", "images"]).delta.mean().unstack("images")
    for labelled in ("heads", "representation"):
        leads = means.loc["closed form"] - means.loc[labelled]
        assert (leads[[4, 16]] > 5).all()
        assert leads[256] < 1
        assert leads[400] < -1


def test_on_photographs_distillation_is_level_with_closed_form_from_64_images():
    """Behind with fewer; with all, on a GPU, closed form takes less than half the time of training heads."""
    curves = Page("nyuv2", "records/photos").derive("closed_form", beyond.realignment_curves)
    means = curves.groupby(["method", "images"])[["delta", "seconds"]].mean().unstack("images")
    lead = (means.delta.loc["closed form"] - means.delta.loc["distillation"]).dropna()
    assert (lead[[4, 16]] > 1).all()
    assert lead[[64, 256, 400]].abs().max() < 1
    assert 2 * means.seconds.loc["closed form", 400] < means.seconds.loc[["heads", "distillation"], 400].min()


def test_task_vectors_of_photographs_are_short_and_those_of_lite0_parallel():
    """What the pages say of lengths and cosines, beside the miniature's."""

    def of(study):
        records = load_records(ROOT / "records" / study)
        details = [each["details"] for each in records if each["experiment"] == "merge_task_arithmetic"]
        lengths = fmean(length for each in details for length in each["relative_norms"].values())
        rows = [(a, row) for each in details for a, row in each["cosines"].items()]
        return lengths, [cosine for a, row in rows for b, cosine in row.items() if a != b]

    assert min(of("photos/nyuv2_lite0")[1]) > 0.9
    others = {study: of(study) for study in ("photos/nyuv2", "photos_gpu/nyuv2", "miniature/cityscapes_dpt")}
    others |= {f"miniature/{name}": of(f"miniature/{name}") for name in DATASETS}
    assert max(max(cosines) for _, cosines in others.values()) < 0.4
    assert 40 < others["miniature/nyuv2"][0] / others["photos/nyuv2"][0] < 60
    linear, dpt = others["miniature/cityscapes"], others["miniature/cityscapes_dpt"]
    assert 0.8 < dpt[0] / linear[0] < 1
    assert fmean(dpt[1]) > 2 * fmean(linear[1])


def test_with_lite0_merging_has_its_part_under_ties():
    """Most of task arithmetic's gain needs no merging, less than half of TIES', which is worth as much."""
    lite, small = (
        Page(*which).frame.printed.unstack("model")
        for which in (("nyuv2_lite0", "records/photos"), ("nyuv2", "records/miniature"))
    )
    for method, most in {"task_arithmetic": True, "ties": False}.items():
        for kind in ("heads", "representation"):
            gain = lite[f"{method}+{kind}"] - lite[method]
            share = (lite[f"pretrained+{kind}"] - lite[method]) / gain
            assert (share.mean() > 0.5) == most, (method, kind)
    worth = [x["ties+heads"] - x["pretrained+heads"] for x in (lite, small)]
    assert abs(worth[0].mean() - worth[1].mean()) < 1


def test_frozen_decoder_keeps_more_but_nothing_is_merged(page):
    """At every α and seed it scores higher than under own heads; best where next to nothing is merged."""
    scans = page.derive("frozen_decoder", variations.contrast_scores)
    scores = scans.set_index(["seed", "alpha", "method"]).score.unstack()
    assert len(scores) == 33
    assert (scores["one frozen decoder"] > scores["own heads"]).all()
    means = scores["one frozen decoder"].groupby("alpha").mean()
    assert means[means.index >= 0.1].is_monotonic_decreasing
    table = page.derive("frozen_decoder", variations.contrast_table)
    own, frozen = ([float(alpha) for alpha in table["α"].iloc[row].split(", ")] for row in (0, 1))
    assert sorted(frozen) == ([0, 0.1, 0.1] if page.dataset == "cityscapes" else [0, 0, 0])
    assert all(a >= b for a, b in zip(own, frozen, strict=True))


def test_at_the_same_alpha_a_frozen_decoder_is_ahead_of_its_own_experts_alone(page):
    """By the same experts (about a product of two columns) the lead of heads that moved is about a point."""
    table = page.derive("frozen_decoder", variations.contrast_table)
    experts, heads = (
        table[name].str.replace("−", "-").str.split().str[0].astype(float)
        for name in ("experts", "heads, same α")
    )
    assert heads.iloc[1] > heads.iloc[0] + 2
    together = (100 + heads.iloc[1]) * (100 + experts.iloc[1]) / 100 - 100
    assert 0 < heads.iloc[0] - together < 1.2


def test_task_vectors_are_nearly_orthogonal_and_concentrated(page):
    """Cosines are far above chance; a tenth of the directions has far more of the energy than in noise."""
    table = page.derive("mechanism", variations.vectors_table).map(lambda cell: float(cell.split()[0]))
    assert table["mean cosine to others"].between(0.03, 0.2).all()
    assert (table["energy in 10 % of the directions"] > 0.75).all()
    noise = TaskVector({"fc.weight": None}, lambda name: torch.randn(128, 128))
    assert spectrum(noise, [0.1])[0] < 1 / 3
    if page.dataset == "cityscapes":
        assert table["mean cosine to others"].idxmin() == "disparity"


def test_masks_bring_back_most_but_for_taskonomy(page):
    """Of what merging lost, with the heads as they were."""
    means = page.frame.printed.groupby("model").mean()
    share = 1 - means["tall_mask"] / means["task_arithmetic"]
    assert share < 1 / 3 if page.dataset == "taskonomy" else share > 0.7


def test_realignment_does_not_reach_joint_training(page):
    """Neither fix, after neither way to merge; but each takes back more than half of the loss."""
    means = page.frame.printed.groupby("model").mean()
    for model in ("task_arithmetic", "ties"):
        for kind in ("heads", "representation"):
            assert means[model] / 2 < means[f"{model}+{kind}"] < means["joint"] - 1


@pytest.fixture(scope="module")
def field(page):
    """Mean Δ by way to realign: of what combines task vectors, SyMerge's idea, and a distilled encoder."""
    columns = ["merged", "heads", "representation", "closed form"]
    table = page.derive("field", beyond.field_table)[columns].map(lambda cell: float(cell.split()[0]))
    learned = [beyond.FIELD_NAMES[name] for name in ("symerge", "distillation")]
    return table.drop(learned), *(table.loc[name] for name in learned)


def test_all_bare_methods_collapse_alike(page, field):
    """Within six points of each other but for two, and all below the worst of the realigned ones."""
    combined, *_ = field
    assert len(combined) == 16
    assert combined.drop(columns="merged").min(axis=None) > combined.merged.max()
    worse = ["nsc", "wudi"] if page.dataset == "nyuv2" else ["nsc"]
    bare = combined.merged.drop([beyond.FIELD_NAMES[name] for name in worse])
    assert bare.max() - bare.min() < 6
    assert (combined.merged.drop(bare.index) < bare.min()).all()


def test_no_method_is_ahead_of_task_arithmetic_everywhere(page, field):
    """ESM and ACE on two data sets, SVC on the third; WUDI and NSC's idea on none."""
    table = field[0]["closed form"].rename({title: name for name, title in beyond.FIELD_NAMES.items()})
    lead, newest = table - table["task_arithmetic"], ["esm", "ace"]
    if page.dataset == "taskonomy":
        assert lead[newest].max() < 0 < lead["svc"] == lead.max()
    else:
        assert lead["svc"] < 0 < lead[newest].min()
        assert lead.max() - lead[newest].min() < 1
    assert (set(lead.nlargest(2).index) == {*newest}) == (page.dataset == "nyuv2")
    assert -8.5 < lead["wudi"] < -1
    assert -5 < lead["nsc"] < -2
    assert lead["equal_norms"] < (-2.5 if page.dataset == "cityscapes" else 0)


def test_no_method_is_far_ahead_of_task_arithmetic_once_realigned(page, field):
    """By four points or so at most, less than by a better α; what looks at images is behind on Taskonomy."""
    combined, *_ = field
    realigned = combined.drop(columns="merged")
    assert (realigned.max() - realigned.loc["Task arithmetic (2023)"]).max() < 4.5
    if page.dataset == "cityscapes":  # an α chosen after realignment does more
        after = page.derive("variations", variations.alpha_table)["Δ, α chosen after"]
        for method, cell in after.items():
            assert float(cell.split()[0]) > combined[method].max()
    if page.dataset == "taskonomy":  # the worst
        behind = realigned.loc["Task arithmetic (2023)"] - realigned.filter(regex="images|WUDI", axis=0)
        assert set(realigned["closed form"].nsmallest(5).index) == set(behind.index)
        wudi = behind.loc[beyond.FIELD_NAMES["wudi"]]
        assert wudi[["closed form", "heads"]].round().tolist() == [8, 12]
        behind = behind.drop(wudi.name)
        assert behind["closed form"].between(3, 5).all()
        assert behind["heads"].between(6, 8).all()


def test_options_nearest_to_task_arithmetic_are_chosen_most_often():
    """Counted over nine runs."""
    tables = [Page(name, "records/miniature").derive("field", beyond.field_table) for name in DATASETS]

    def count(method, value):
        return sum(table.loc[method, "option"].split(" ", 1)[1].split(", ").count(value) for table in tables)

    assert count("TIES (2023)", "1.0") == 8
    assert count("DARE (2024)", "0.1") == 6
    assert count("LiNeS (2025)", "1.0") == 5
    assert count("Breadcrumbs (2024)", "0.5") == 5


@pytest.fixture(scope="module")
def adapted():
    """NYUv2 with experts that are LoRA adapters."""
    return Page("nyuv2_lora", "records/miniature")


def test_merging_adapters_is_not_chosen_on_two_seeds(adapted):
    """On the third KnOTS leads by less than a point; once realigned, nothing is ahead of task arithmetic."""

    def rows_of(details):
        for row in details["methods"]:
            best = max(row["scans"], key=lambda scan: scan["score"], default={"alpha": None})
            for score in row["scores"]:
                yield score | {"method": row["method"], "α": best["alpha"]}

    found = adapted.derive("field", lambda findings: beyond.with_deltas(findings, rows_of))
    chosen = found.dropna(subset="α").groupby("seed")["α"].max()
    assert (chosen == 0).tolist() == [True, False, True]
    merged = found[found.seed == 1].pivot(index="method", columns="realignment", values="delta")
    assert (merged.drop(columns="").idxmax() == "task_arithmetic").all()
    bare = found[found.realignment == ""].pivot(index="method", columns="seed", values="delta")
    assert (bare.idxmin() == "nsc").all()
    assert bare[1].idxmax() == "knots"
    assert bare[1].max() - bare.loc["task_arithmetic", 1] < 1
    adapters = found[found.realignment == "representation"].pivot(
        index="method", columns="seed", values="delta"
    )
    assert (adapters.idxmax() == "nsc").tolist() == [True, False, True]
    lengths = [tables.vectors(each.records) for each in (adapted, Page("nyuv2", "records/miniature"))]
    longer, usual = (float(list(each.values())[1].split()[0]) for each in lengths)
    assert 2.5 < longer / usual < 3.5


def test_the_residual_chooses_an_alpha_that_merges_adapters(adapted):
    """As good as labels after closed form, seven points above labels before it, and like whole experts."""

    def of(page):
        found = page.derive("unlabelled_alpha", beyond.chosen_alphas)
        return found[found.method == "task_arithmetic"].pivot(index="seed", columns="rule", values="delta")

    own, whole = of(adapted), of(Page("nyuv2", "records/miniature"))
    chosen = adapted.derive("unlabelled_alpha", beyond.chosen_alphas)
    means = chosen[chosen.rule == "residual"].groupby("method").delta.mean()
    assert 0.5 < means["knots"] - means["ties"] < 1.5
    assert abs(means["knots"] - means["task_arithmetic"]) < 0.5
    assert means["ties"] < means["core_space"] < means["task_arithmetic"]
    assert (own["residual"] - own["after"]).abs().max() < 0.2
    assert (own["residual"] - own["before"]).round().tolist() == [7, 0, 7]
    assert (own["residual"] - whole["residual"]).abs().max() < 1


def test_closed_form_is_better_than_heads_after_every_method(field):
    """After SyMerge's idea, whose heads were trained already, on NYUv2 as good."""
    combined, learned, _ = field
    assert (combined["closed form"] > combined["heads"]).all()
    assert learned["closed form"] >= learned["heads"]


def test_learned_coefficients_and_heads_lead_every_column(page, field, curves):
    """Bare they are level with all others with heads realigned, or better; joint training is better still.

    Most of it is the heads': alone they come near, coefficients alone, with labels, do not. A distilled
    encoder is next when bare, and on Taskonomy level in every column.
    """
    combined, learned, distilled = field
    means = page.frame.printed.groupby("model").mean()
    assert (learned > combined.max()).all()
    assert distilled["merged"] > combined["merged"].max()
    if page.dataset == "taskonomy":
        assert (learned - distilled).abs().max() < 1
    else:
        assert learned["merged"] > distilled["merged"]
    assert learned["merged"] > combined["heads"].max() - 0.5
    assert learned["merged"] > means["task_arithmetic+representation"] - 1
    assert learned.max() < means["joint"]
    assert 1.8 < learned["merged"] - curves.loc["distillation"].iloc[-1] < 8
    assert learned["merged"] - means["adamerging"] > 8


@pytest.fixture(scope="module")
def varied(page):
    """Mean over seeds of Δ by what a function of `variations` makes of the page's records, and by method."""

    def read(function, *by):
        return page.derive("variations", function).groupby([*by, "method"]).delta.mean().unstack("method")

    return read


def test_alpha_is_better_chosen_after_realignment(page, varied):
    """On Cityscapes that is worth a third of the loss or more, as bare scores are flat; else 3 points."""
    means = varied(variations.alpha_scores, "alpha")
    for method in ("heads", "closed form"):
        assert means[method].idxmax() in (0.4, 0.5)
    table = page.derive("variations", variations.alpha_table)
    before, after = (
        table[f"Δ, α chosen {when}"].str.split().str[0].astype(float) for when in ("before", "after")
    )
    for alphas in (table["α chosen before"], table["α chosen after"]):
        assert alphas.str.count(",").eq(2).all()
    assert after.max() < page.beside("variations").loc["joint"].printed.mean() - 1
    if page.dataset == "cityscapes":
        assert (before / after).between(1.5, 2).all()
        flat = means.merged[means.index <= 0.4]
        assert flat.max() - flat.min() < 5
    else:
        gain = after - before
        assert gain["closed form"] < gain["heads"] / 1.9
        if page.dataset == "nyuv2":
            assert gain.between(-0.15, 1.5).all()
        else:
            assert gain["heads"] == pytest.approx(3, abs=0.2)
    chosen = [
        table[f"α chosen {when}"].str.split(", ", expand=True).astype(float) for when in ("before", "after")
    ]
    assert (chosen[0] <= chosen[1]).all(axis=None)


def test_place_of_an_adapter_counts_as_much_as_its_rank(page):
    """LoRA of rank 16's size is ahead of rank 64 on three of nine seeds; 64 for 1 gains four or none."""
    scores = page.derive("variations", variations.adapter_scores)
    rows = scores.set_index(["method", "rank", "seed"]).delta.unstack("seed")
    own, lora = rows.loc["the paper's adapter"], rows.loc["LoRA"].squeeze()
    assert list(own.index) == [1, 4, 16, 64]
    assert (lora > own.loc[64]).sum() == {"cityscapes": 2, "taskonomy": 0, "nyuv2": 1}[page.dataset]
    gain = own.loc[64] - own.loc[1]
    assert gain.mean() < 0.5 if page.dataset == "nyuv2" else gain.between(3.5, 6).all()


def test_everything_is_best_merged(page):
    """In every column; what is no matrix of a block is worth seven or more to Taskonomy, little elsewhere."""
    table = page.derive("variations", variations.parts_table)
    means = table[["merged", "heads", "closed form"]].map(lambda cell: float(cell.split()[0]))
    assert (means.idxmax() == "everything").all()
    assert int(table.loc["matrices only", "values, %"]) > 95
    lost = (means.loc["everything"] - means.loc["matrices only"])[["heads", "closed form"]]
    assert lost.between(7, 13).all() if page.dataset == "taskonomy" else (lost < 2).all()


def test_gentler_experts_do_not_pay(page, varied):
    """Realigned models are better the further experts moved, though these lose more; bare it varies."""
    means = varied(variations.rate_scores, "rate")
    assert list(means.index) == [0.1, 0.3, 1]
    for method in ("heads", "closed form", "experts"):
        assert means[method].is_monotonic_increasing
    assert (means["closed form"] - means.experts).is_monotonic_decreasing
    gain = means.merged[0.1] - means.merged[1]
    least, most = {"taskonomy": (4, 9), "cityscapes": (1, 2), "nyuv2": (-9, 1)}[page.dataset]
    assert least < gain < most


def test_deeper_encoders_leave_more_unrepaired(page, varied):
    """By closed form, relative to their own experts; joint training hardly depends on the depth.

    Relative to the whole encoder's experts, they are the better ones on NYUv2 and Taskonomy.
    """
    means = varied(variations.depth_scores, "depth")
    assert list(means.index) == [2, 4, 6]
    assert means["closed form"].is_monotonic_decreasing
    scores = page.derive("variations", variations.depth_scores).set_index(["method", "seed", "depth"]).delta
    for way in ("closed form", "merged"):
        seeds = scores[way].unstack("depth")
        assert (seeds[6] < seeds[2]).all(), way
        if way == "closed form" and page.dataset != "taskonomy":
            assert (seeds.diff(axis=1).iloc[:, 1:] < 0).all(axis=None)

    def rows_of(details):
        whole = {"depth": details["whole"], **details["parts"]["everything"]}
        return [
            score | {"blocks": each["depth"]}
            for each in [*details["depths"], whole]
            for score in each["scores"]
        ]

    rows = page.derive("variations", beyond.with_deltas, rows_of)
    absolute = rows[rows.way == "closed form"].groupby("blocks").delta.mean()
    assert absolute.is_monotonic_increasing == (page.dataset != "cityscapes")
    assert (means.joint - means["closed form"]).idxmin() == 2
    assert means.joint.max() - means.joint.min() < 2.5
    assert means.experts[2] > -10


@pytest.fixture(scope="module")
def dpt():
    """Mean Δ over seeds of every model with DPT heads."""
    return Page("cityscapes_dpt", "records/miniature").frame.printed.groupby("model").mean()


def test_dpt_heads_do_not_collapse(dpt):
    """Merging costs a few points, and half under linear heads."""
    linear = Page("cityscapes", "records/miniature").frame.printed.groupby("model").mean()
    for model in ("task_arithmetic", "ties"):
        assert -10 < dpt[model] < -2
        assert linear[model] < -40
        assert paper_deltas("cityscapes", read_paper())[model] < -25
    assert paper_deltas("cityscapes", read_paper())["task_arithmetic"] < -30
    assert dpt["pretrained+heads"] - dpt["task_arithmetic"] == pytest.approx(0, abs=1.5)


def test_experts_with_dpt_heads_gain_from_steps_and_not_from_new_images(dpt):
    """On images that they have seen they end as high, to a point."""
    for kind in ("heads", "representation"):
        assert dpt[f"expert+{kind}, seen"] == pytest.approx(dpt[f"expert+{kind}"], abs=1)


def test_neighbours_of_closed_form_under_dpt_heads():
    """Level with SurgeryV2 and with itself after FeatCal, in a twentieth of the time; others hardly help."""
    page = Page("cityscapes_dpt", "records/miniature")
    rows = page.derive("neighbours", beyond.neighbour_scores).groupby("name")
    delta, spread, seconds = rows.delta.mean(), rows.delta.std().max(), rows.seconds.min()
    best = ["task arithmetic + closed form", "SurgeryV2", "FeatCal + closed form"]
    assert set(delta.nlargest(3).index) == set(best)
    assert delta[best].max() - delta[best].min() < spread
    assert seconds["SurgeryV2"] > 20 * seconds[best[0]]
    assert rows.passes.first().drop("SurgeryV2").eq(1).all()
    assert 0 < delta["FeatCal"] - delta["task arithmetic"] < 1
    for name in ("RegMean++", "ProDistill"):
        assert -2 < delta[name] - delta["task arithmetic"] < -0.5
        assert delta[f"{name} + closed form"] < delta[best[0]]
    assert delta.max() < 0


@pytest.mark.parametrize("profile", ["miniature", "photos"])
def test_neighbours_of_closed_form_under_linear_heads(profile):
    """FeatCal helps closed form on every seed, by a point; no neighbour's encoder undoes the collapse."""
    rows = Page("nyuv2", f"records/{profile}").derive("neighbours", beyond.neighbour_scores)
    delta = rows.pivot_table(index="name", columns="seed", values="delta")
    lead = delta.loc["FeatCal + closed form"] - delta.loc["task arithmetic + closed form"]
    assert lead.min() > 0
    assert 0.7 < lead.mean() < 1.1
    seconds = rows.groupby("name").seconds.min()
    assert 5 < seconds["FeatCal + closed form"] / seconds["task arithmetic + closed form"] < 10
    gain = delta.mean(axis=1) - delta.loc["task arithmetic"].mean()
    assert gain[["FeatCal", "RegMean++"]].abs().max() < 2
    others = delta.mean(axis=1)[["SurgeryV2", "ProDistill + closed form"]]
    own = delta.loc["task arithmetic + closed form"].mean()
    assert ((others > own).all(), gain["ProDistill"] > 0) == (profile == "miniature",) * 2


def test_neighbours_of_closed_form_where_alpha_is_small():
    """On Cityscapes what merges anew leads; at the residual's α only ProDistill with closed form does."""
    page = Page("cityscapes", "records/miniature")
    rows = page.derive("neighbours", beyond.neighbour_scores)
    delta = rows.pivot_table(index="name", columns="seed", values="delta")
    own = "task arithmetic + closed form"
    lead = (delta.drop(own) - delta.loc[own]).loc[lambda table: table.index.str.endswith("closed form")]
    assert (lead > 0).all(axis=None)
    for name, points in {"FeatCal": 3, "RegMean++": 3, "ProDistill": 7}.items():
        assert lead.loc[f"{name} + closed form"].mean() == pytest.approx(points, abs=0.5)
    means = delta.mean(axis=1)
    assert means["SurgeryV2"] < means[own] - 17
    assert means[["FeatCal", "RegMean++", "ProDistill"]].max() < means["task arithmetic"]
    seconds = rows.groupby("name").seconds.min()
    assert seconds["FeatCal + closed form"] > 4 * seconds[own]
    assert seconds["ProDistill + closed form"] > 20 * seconds[own]
    chosen = page.derive("unlabelled_alpha", beyond.chosen_alphas)
    residual = chosen[(chosen.method == "task_arithmetic") & (chosen.rule == "residual")].delta.mean()
    assert means.drop("ProDistill + closed form").max() < residual < means["ProDistill + closed form"]


def test_neighbours_of_closed_form_where_merging_costs_most():
    """On Taskonomy closed form after ProDistill and FeatCal leads on every seed; Surgery stays behind."""
    page = Page("taskonomy", "records/miniature")
    rows = page.derive("neighbours", beyond.neighbour_scores)
    delta = rows.pivot_table(index="name", columns="seed", values="delta")
    own = "task arithmetic + closed form"
    lead = delta.drop(own) - delta.loc[own]
    assert (lead.loc[["ProDistill + closed form", "FeatCal + closed form"]] > 1).all(axis=None)
    assert (lead.loc[["SurgeryV2", "Surgery"]] < -20).all(axis=None)
    means = lead.mean(axis=1)
    for name, points in {"FeatCal": 1.8, "RegMean++": -2.6, "ProDistill": 3.7}.items():
        assert means[f"{name} + closed form"] == pytest.approx(points, abs=0.3)
    bare = (
        delta.loc[["FeatCal", "RegMean++", "ProDistill"]].mean(axis=1) - delta.loc["task arithmetic"].mean()
    )
    assert bare.abs().max() < 2
    seconds = rows.groupby("name").seconds.min()
    assert 4 < seconds["FeatCal + closed form"] / seconds[own] < 8
    assert seconds["ProDistill + closed form"] / seconds[own] == pytest.approx(21, abs=3)
    chosen = page.derive("unlabelled_alpha", beyond.chosen_alphas)
    residual = chosen[(chosen.method == "task_arithmetic") & (chosen.rule == "residual")].delta.mean()
    assert 0.4 < residual - delta.loc[own].mean() < 1
    assert residual < delta.loc["FeatCal + closed form"].mean()


def test_dpt_experts_move_nearly_as_far_and_their_heads_read_what_is_strange(dpt):
    """Task vectors are at most a fifth shorter; α is twice as large; the pretrained encoder loses less."""
    linear = Page("cityscapes", "records/miniature")
    details = {
        name: [record["details"] for record in load_records(ROOT / "records/miniature" / name)
               if record["experiment"] == "merge_task_arithmetic"]
        for name in ("cityscapes", "cityscapes_dpt")
    }  # fmt: skip
    lengths, alphas = (
        {name: fmean(read(each) for each in found) for name, found in details.items()}
        for read in (lambda each: fmean(each["relative_norms"].values()), lambda each: each["alpha"])
    )
    assert 0.8 < lengths["cityscapes_dpt"] / lengths["cityscapes"] < 1
    assert alphas["cityscapes_dpt"] > 2 * alphas["cityscapes"]
    assert dpt["pretrained"] > linear.frame.printed.groupby("model").mean()["pretrained"] + 10


def test_every_vector_helps_every_dpt_head():
    """Figure 3 with DPT heads, on every seed: the paper's lines fall, ours rise."""
    for curves in Page("cityscapes_dpt", "records/miniature").curves():
        for heads in curves.values():
            assert all(head[1.0] > head[0.0] for head in heads.values())


def test_realigned_dpt_heads_are_above_the_experts_as_experts_with_that_budget_are(dpt):
    """So that they are above joint training, too."""
    for kind in ("heads", "representation"):
        assert dpt[f"expert+{kind}"] > 6
        for method in ("task_arithmetic", "ties"):
            assert abs(dpt[f"{method}+{kind}"] - dpt[f"expert+{kind}"]) < 2
            assert dpt[f"{method}+{kind}"] > dpt["joint"]


@pytest.fixture(scope="module")
def joint(page):
    """Mean over seeds of Δ and costs of joint training's variants, and of realignment, by name."""
    scores = page.derive("joint_variants", beyond.joint_scores)
    return scores.drop(columns="seed").groupby("name").mean(numeric_only=True)


def test_balancing_gains_little_and_no_way_is_best_everywhere(page, joint):
    """CAGrad one and a half points and two, above the experts on Cityscapes; nothing much on Taskonomy."""
    balanced = joint.delta[[f"Joint, {name}" for name in beyond.BALANCES.values()]]
    gain = balanced.max() - joint.delta["Joint training"]
    if page.dataset == "taskonomy":
        assert 0 < gain < 0.5
    else:
        assert gain == pytest.approx({"nyuv2": 1.5, "cityscapes": 2.1}[page.dataset], abs=0.1)
        assert balanced.idxmax() == "Joint, CAGrad"
    assert (balanced.max() > 0) == (page.dataset == "cityscapes")


def test_more_images_bring_joint_training_next_to_nothing(joint):
    """The validation images too, in as many steps."""
    assert abs(joint.delta["Joint, validation too"] - joint.delta["Joint training"]) < 0.5


def test_validation_images_alone_suffice_for_joint_training(page, joint):
    """It is level with representation realignment on NYUv2 and far ahead else, in three times the steps."""
    alone, realigned = joint.loc["Joint, validation only"], joint.loc["TA + representation"]
    lead = alone.delta - realigned.delta
    assert abs(lead) < 0.5 if page.dataset == "nyuv2" else 9.5 < lead < 11.5
    assert alone.samples == realigned.samples
    assert alone.steps >= 3 * realigned.steps


def test_realignment_pays_in_steps_if_experts_exist(joint):
    """In equal steps joint training is behind both fixes; with the experts' steps they cost far more."""
    fixes = joint.loc[["TA + heads", "TA + representation"]]
    held = joint.loc["Joint, realignment's steps"]
    assert held.steps == joint.loc["TA + representation"].steps
    assert held.delta < fixes.delta.min()
    assert (fixes["all steps"] / joint.loc["Joint training"].steps).between(3, 7).all()
    assert fixes.delta.max() < joint.delta["Joint training"]


def test_heads_with_labels_and_five_times_the_steps_are_still_behind_closed_form(page):
    """On every seed, by less than three points in the mean, in eleven to fifteen times the time."""
    rows = page.derive("closed_form_control", beyond.with_deltas, lambda details: details["controls"])
    deltas = rows.set_index(["name", "seed"]).delta
    lead = deltas["TA + closed form"] - deltas["TA + heads, longer"]
    assert (lead > 0).all()
    assert lead.mean() < 3
    seconds = rows.groupby("name").seconds.mean()
    assert 10.5 < seconds["TA + heads, longer"] / seconds["TA + closed form"] < 15.5
    steps = {
        r["provenance"]["parameters"]["longer_steps"]
        for r in page.records
        if "closed_form_control" in r["experiment"]
    }
    assert steps == {5 * 200}


def test_merging_contributes_under_closed_form_too(page):
    """Six to eleven points in the mean, on every seed nearly four at least, beside the pretrained encoder."""
    rows = page.derive("closed_form_control", beyond.with_deltas, lambda details: details["controls"])
    deltas = rows.set_index(["name", "seed"]).delta
    gain = deltas["TA + closed form"] - deltas["Pretrained + closed form"]
    assert gain.between(3.8, 13).all()
    assert 5.5 < gain.mean() < 11.5


def test_on_cityscapes_most_of_the_gain_needs_no_merging():
    """The page says so, of heads and of adapters: more than three quarters, in the mean over seeds."""
    delta = Page("cityscapes", "records/miniature").frame.printed.unstack("model").mean()
    for kind in ("heads", "representation"):
        bare, whole = delta["task_arithmetic"], delta[f"task_arithmetic+{kind}"]
        assert 0.75 < (delta[f"pretrained+{kind}"] - bare) / (whole - bare) < 0.9


@pytest.mark.parametrize("name", DATASETS)
def test_methods_without_images_differ_little_after_closed_form(name):
    """The page on which method when: three points between them, without two; SyMerge's idea leads."""
    page = Page(name, "records/miniature")
    deltas = page.derive("field", beyond.field_table)["closed form"].str.split("\u00a0").str[0].astype(float)
    assert deltas.idxmax() == beyond.FIELD_NAMES["symerge"]
    needing = [beyond.FIELD_NAMES[each] for each in (*FROM_IMAGES, "nsc", "symerge", "distillation")]
    without, behind = deltas.drop(needing), [beyond.FIELD_NAMES[each] for each in BEHIND[name]]
    others = without.drop(behind)
    assert others.max() - others.min() <= 3
    assert (without[behind] < others.min()).all()
    if name == "taskonomy":
        assert {beyond.FIELD_NAMES[each] for each in ("regmean", "lot")} <= {*deltas.nsmallest(4).index}


def test_what_was_not_merged_is_said():
    """Of two seeds, one chose α = 0 for TIES, none for task arithmetic."""
    page = Page("nyuv2", "records/none")
    page.records = [
        {"experiment": f"merge_{method}", "seed": seed, "details": {"alpha": alpha}}
        for method, alphas in (("task_arithmetic", (0.3, 0.1)), ("ties", (0.0, 0.2)))
        for seed, alpha in enumerate(alphas)
    ]
    assert readings.unmerged(page).startswith("*Nothing was merged by TIES (1 of 2 seeds): of all α")
    page.records = page.records[:2]
    assert readings.unmerged(page) == ""


def test_what_was_best_at_the_end_of_its_grid_is_said():
    """Consensus takes the last α on one of two seeds; where one α only is tried, none is the last."""
    page = Page("nyuv2", "records/none")
    scans = {
        "merge_ties": ("scan", [0.0, 0.5, 1.0], (0.5, 0.0)),
        "masks": ("alpha_scan", [0.0, 1.0], (1.0, 0.0)),
    }
    scans["merge_average"] = "scan", [1.0], (1.0, 1.0)
    page.records = [
        {"experiment": name, "details": {"alpha": chosen, scan: [{"alpha": alpha} for alpha in tried]}}
        for name, (scan, tried, both) in scans.items()
        for chosen in both
    ]
    assert "was chosen for Consensus (1 of 2 seeds): more may be" in readings.at_the_edge(page)
    page.records = page.records[:2]
    assert readings.at_the_edge(page) == ""


def test_tasks_of_which_a_constant_knows_as_much_are_named():
    """A constant at 96 and 40 % of the experts: the first task is as good as guessed."""
    page = Page("nyuv2", "records/none")
    index = pd.MultiIndex.from_tuples([("constant", 0), ("expert", 0)], names=["model", "seed"])
    page.frame = pd.DataFrame({"depth %": [96.0, 100.0], "normals %": [40.0, 100.0]}, index=index)
    assert readings.empty_tasks(page).startswith("*At depth a constant prediction is as good")
    page.frame = page.frame.drop("constant")  # not run
    assert readings.empty_tasks(page) == ""


@pytest.fixture(scope="module")
def photos():
    """Δ on NYUv2's photographs: one row a seed, one column a model."""
    return Page("nyuv2", "records/photos").frame.printed.unstack("model")


def test_on_photographs_realignment_recovers_more_than_half(photos):
    """NYUv2's page and the introduction: both fixes, of both methods, and none of it by merging alone."""
    for method in ("task_arithmetic", "ties"):
        for kind in ("heads", "representation"):
            assert (tables.recovered(photos, method, kind) > 50).all(), (method, kind)
            assert (photos[f"{method}+{kind}"] > photos[f"pretrained+{kind}"]).all()
            assert (photos[f"{method}+{kind}"] < 0).all()


def test_on_photographs_merging_is_worth_more_than_in_the_miniature(photos):
    """What the merged encoder is ahead of the pretrained one by; heads alone do not make up for it."""
    miniature = Page("nyuv2", "records/miniature").frame.printed.unstack("model")
    for kind in ("heads", "representation"):
        worth = [x[f"task_arithmetic+{kind}"] - x[f"pretrained+{kind}"] for x in (photos, miniature)]
        assert worth[0].min() > worth[1].max()
    assert (photos["pretrained+heads"] < photos["task_arithmetic"]).all()
