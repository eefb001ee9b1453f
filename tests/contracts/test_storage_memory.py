import uuid

import pytest

from tests.contracts.storage_contract import ReplacedContract, StorageContract


class TestMemoryStorage(StorageContract, ReplacedContract):
    @pytest.fixture
    def root(self):
        return f"memory://{uuid.uuid4().hex}/root"
