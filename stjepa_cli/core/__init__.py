"""What every room shares: types, configuration, errors, progress, locations, files, plug-ins, devices.

What lives here: frozen values and small mechanisms that know nothing of video, models or storage.
What does not: anything that only one room needs.
May import: the standard library; third-party packages only inside functions, and torch only in `devices`.
"""
