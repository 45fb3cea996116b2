package protocol

import (
	"strings"
	"testing"
)

func TestValidateCheckpoint(t *testing.T) {
	refuse(
		t, ErrInvalid,
		refusal[*Heartbeat]{"no root", func(m *Heartbeat) { m.Checkpoint.Root = nil }},
		refusal[*Heartbeat]{"no bytes", func(m *Heartbeat) { m.Checkpoint.Bytes = 0 }},
		refusal[*Heartbeat]{"too many bytes", func(m *Heartbeat) { m.Checkpoint.Bytes = maxCheckpoint + 1 }},
		refusal[*Heartbeat]{"no engine", func(m *Heartbeat) { m.Checkpoint.Portability.Engine = "" }},
		refusal[*Heartbeat]{"no portability", func(m *Heartbeat) { m.Checkpoint.Portability = nil }},
		refusal[*Heartbeat]{"long words", func(m *Heartbeat) { m.CheckpointFailed = strings.Repeat("x", maxDetail+1) }},
		refusal[*Heartbeat]{"long trouble", func(m *Heartbeat) { m.Trouble = strings.Repeat("x", maxDetail+1) }},
	)
	refuse(
		t, ErrInvalid,
		refusal[*Lease]{"too often", func(m *Lease) { m.Spec.CheckpointEveryMs = 999 }},
		refusal[*Lease]{"below zero", func(m *Lease) { m.Spec.CheckpointEveryMs = -1 }},
		refusal[*Lease]{"too seldom", func(m *Lease) { m.Spec.CheckpointEveryMs = maxMillis + 1 }},
		refusal[*Lease]{"no key", func(m *Lease) { m.Spec.CheckpointKey = nil }},
		refusal[*Lease]{"key for nothing", func(m *Lease) {
			m.Spec.CheckpointEveryMs, m.Spec.Restore, m.RestoreBytes = 0, nil, 0
		}},
		refusal[*Lease]{"long key", func(m *Lease) { m.Spec.CheckpointKey = make([]byte, maxSealedKey+1) }},
		refusal[*Lease]{"odd root", func(m *Lease) { m.Spec.Restore = []byte("root") }},
		refusal[*Lease]{"restored and not saved", func(m *Lease) { m.Spec.CheckpointEveryMs, m.Spec.CheckpointKey = 0, nil }},
		refusal[*Lease]{"bytes of nothing", func(m *Lease) { m.Spec.Restore = nil }},
		refusal[*Lease]{"nothing restored", func(m *Lease) { m.RestoreBytes = 0 }},
	)
	refuse(
		t, ErrInvalid,
		refusal[*Offer]{"long engine", func(m *Offer) { m.Portability.Engine = strings.Repeat("x", maxEngine+1) }},
		refusal[*Offer]{"many features", func(m *Offer) { m.Portability.Cpu = make([]byte, maxCPU+1) }},
	)
	refuse(t, ErrInvalid, refusal[*Capacity]{"many features", func(m *Capacity) { m.Portability.Cpu = make([]byte, maxCPU+1) }})
	refuse(t, ErrInvalid, refusal[*Verdict]{"odd checkpoint", func(m *Verdict) { m.Checkpoint = []byte("root") }})
}
