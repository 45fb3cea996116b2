package protocol

// checkPrivate holds together what a task says of private data: there is a key
// exactly when the task is private, and only then may inputs be.
func (t *Task) checkPrivate() error {
	if len(t.GetSealedKey()) > maxSealedKey {
		return bad("a sealed key of %d bytes, over %d", len(t.GetSealedKey()), maxSealedKey)
	}
	if t.GetPrivate() != (len(t.GetSealedKey()) > 0) {
		return bad("a private task has a sealed key, any other has none")
	}
	for _, in := range t.GetInputs() {
		if in.GetPrivate() && !t.GetPrivate() {
			return bad("a private input for %s in a task that is not private", in.GetTo())
		}
	}
	return nil
}
