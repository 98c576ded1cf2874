"""One file or one package for each tracker."""
