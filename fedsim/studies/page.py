"""placeholder"""
from pathlib import Path
from fedsim.studies.batch_size import Study
def write_page(study: Study) -> Path:
    return study.folder
