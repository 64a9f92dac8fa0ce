"""Where the data of a data set are: prepared by the user already, or to be made in this build."""

from pathlib import Path

from simo.errors import SimoError

RAW = {
    "nyuv2": "MTAN's .npy folder, the parquet shards of tanganke/nyuv2, the official .mat, or pictures of it",
    "cityscapes": "the official packages leftImg8bit, gtFine, disparity and gtFinePanopticParts",
    "taskonomy": "the 16 buildings of the paper in omnidata's layout",
}


def data_folder(data, dataset, build):
    """Folder of the prepared data of a data set.

    Parameters
    ----------
    data : str or None
        The user's folder, with a folder `<dataset>` of raw or prepared data in it; None to render.
    dataset : str
        A key of `RAW`.
    build : str
        Folder of this build.

    Returns
    -------
    str
        The user's own folder if it is prepared, else the one in the build where it is going to be.

    Raises
    ------
    SimoError
        If the user's folder has nothing for this data set; the message says what is expected there.
    """
    if data:
        own = Path(data) / dataset
        if not own.is_dir():
            raise SimoError(
                f"{own} does not exist: expected {dataset} there, prepared or raw ({RAW[dataset]}). "
                f"`python -m data_scripts.{dataset} --raw {own} --out anywhere` tells where to get it"
            )
        if (own / "prepared.json").is_file():
            return str(own)
    return f"{build}/data/{dataset}"
