"""Print what a project and some of its extras require, so that an image has a layer with that below the code."""

import sys

import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
print(
    *project["dependencies"],
    *(one for extra in sys.argv[2:] for one in project["optional-dependencies"][extra]),
    sep="\n",
)
