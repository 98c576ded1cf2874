"""A live store's artifacts moved to another place, its addresses switched, and all of it undoable."""
