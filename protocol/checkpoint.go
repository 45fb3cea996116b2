package protocol

import "time"

// Bounds of what is said of checkpoints.
const (
	MinCheckpointEvery = time.Second
	maxEngine          = 128
	maxCPU             = 64
	maxCheckpoint      = 4 * maxBytes // memory, disk and outputs, and a little
)

// check bounds a portability; none is well.
func (p *Portability) check() error {
	if len(p.GetCpu()) > maxCPU {
		return bad("%d bytes of processor features, over %d", len(p.GetCpu()), maxCPU)
	}
	return text("engine", p.GetEngine(), maxEngine)
}

// check holds a checkpoint that a heartbeat tells of; none is well.
func (c *Checkpoint) check(now time.Time) error {
	if c == nil {
		return nil
	}
	if c.GetBytes() == 0 || c.GetBytes() > maxCheckpoint {
		return bad("a checkpoint of %d bytes", c.GetBytes())
	}
	return first(
		contentID("checkpoint", c.GetRoot()), issued(c.GetAtMs(), now), c.GetPortability().check(),
		needed("the checkpoint's engine", c.GetPortability().GetEngine(), maxEngine),
	)
}

// checkCheckpoint holds together what a task says of checkpoints: there are keys
// exactly when some are made.
func (t *Task) checkCheckpoint() error {
	if len(t.GetCheckpointKey()) > maxSealedKey {
		return bad("a checkpoint key of %d bytes, over %d", len(t.GetCheckpointKey()), maxSealedKey)
	}
	every := t.GetCheckpointEveryMs()
	if every != 0 && every < MinCheckpointEvery.Milliseconds() {
		return bad("a checkpoint every %d ms, less than %s apart", every, MinCheckpointEvery)
	}
	if (every != 0) != (len(t.GetCheckpointKey()) > 0) {
		return bad("a task with checkpoints has a key for them, any other has none")
	}
	if len(t.GetRestore()) == 0 {
		return spanMs("time between checkpoints", every)
	}
	if every == 0 {
		return bad("a task that goes on from a checkpoint and makes none")
	}
	return first(spanMs("time between checkpoints", every), contentID("restore", t.GetRestore()))
}
