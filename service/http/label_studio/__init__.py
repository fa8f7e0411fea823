"""The ML backend routes of Label Studio, which pre-annotate the tasks of its projects.

``labeling_config``: which regions a project wants; ``images``: the images of its tasks;
``regions``: from detections to regions; ``routes``: the endpoints.
"""
