import pytest
from train_helpers import make_images


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp('data') / 'images')
