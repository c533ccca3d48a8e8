"""Languages: which one a text is in, by models of letters, and how to steer a model towards one."""
