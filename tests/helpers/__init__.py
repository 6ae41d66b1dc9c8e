"""What tests share. A folder on the path of every test, and of the processes that tests start (`paths.python_path`)."""
