"""The arena: every mixer in the same hosts, trained by one recipe, measured by one ruler.

``grid`` says what is compared, ``run`` runs it in processes of their own, ``store`` keeps the results and ``report``
draws them. Nothing here knows a mixer by name: all of them come from the registry.
"""
