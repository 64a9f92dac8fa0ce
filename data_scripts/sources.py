"""Where the data of a data set are: prepared by the user already, or to be made in this build."""

from pathlib import Path

from simo.errors import SimoError
from simo.files import read_object

RAW = {
    "nyuv2": "MTAN's .npy folder, the parquet shards of tanganke/nyuv2, the official .mat, or pictures of it",
    "cityscapes": "the official packages leftImg8bit, gtFine, disparity and gtFinePanopticParts",
    "taskonomy": "the 16 buildings of the paper in omnidata's layout",
}


def data_folder(data, dataset, build, size=None):
    """Folder of the prepared data of a data set.

    Parameters
    ----------
    data : str or None
        The user's folder, with a folder `<dataset>` of raw or prepared data in it; None to render.
    dataset : str
        A key of `RAW`.
    build : str
        Folder of this build.
    size : list of int, optional
        Height and width that the profile's parameters are made for.

    Returns
    -------
    str
        The user's own folder if it is prepared, else the one in the build where it is going to be.

    Raises
    ------
    SimoError
        If the user's folder has nothing for this data set; the message says what is expected there. If it is
        prepared in another size.
    """
    if data:
        own = Path(data) / dataset
        if not own.is_dir():
            raise SimoError(
                f"{own} does not exist: expected {dataset} there, prepared or raw ({RAW[dataset]}). "
                f"`python -m data_scripts.{dataset} --raw {own} --out anywhere` tells where to get it"
            )
        if (own / "prepared.json").is_file():
            found = read_object(own / "prepared.json").get("image_size") if size else None
            if found != size:
                raise SimoError(
                    f"{own} is prepared with images of {found} (height, width), where this profile's crops "
                    f"are made for {size}: give DATA the raw data, or prepare them with --size"
                )
            return str(own)
    return f"{build}/data/{dataset}"


def missing_data(profile, datasets):
    """One screen that says what a profile needs, and the ways to it.

    Parameters
    ----------
    profile : str
    datasets : sequence of str
        Keys of `RAW`.

    Returns
    -------
    str
    """
    lines = [f"the profile {profile!r} needs real data:", ""]
    lines += [f"    make book PROFILE={profile} DATA=folder", "", "with, raw or prepared,", ""]
    lines += [f"    folder/{name}    {RAW[name]}" for name in datasets]
    if datasets == ["nyuv2"]:
        lines += ["", "or, with the network, 3 GB and nothing at hand,", ""]
        lines += [f"    make book PROFILE={profile} DOWNLOAD=yes", ""]
        lines += ["which fetches the copy tanganke/nyuv2 from the Hugging Face Hub, and the encoder by timm."]
    lines += ["", "Where raw data are to be had, each script says:", ""]
    lines += [f"    python -m data_scripts.{name} --raw folder/{name} --out anywhere" for name in datasets]
    lines += ["", "The encoder comes from timm's hub unless WEIGHTS names another source; see book/data.md."]
    return "\n".join(lines)
