LOCAL = "local"
