package protocol

import (
	"errors"
	"testing"
)

func TestPrivateTask(t *testing.T) {
	key := []byte("sealed")
	in := func(private bool) []*Input {
		return []*Input{{Root: sampleCID(), To: "/in", Size: 1, Private: private}}
	}
	for name, c := range map[string]struct {
		task *Task
		ok   bool
	}{
		"private":             {&Task{Private: true, SealedKey: key, Inputs: in(true)}, true},
		"open input":          {&Task{Private: true, SealedKey: key, Inputs: in(false)}, true},
		"not private":         {&Task{Inputs: in(false)}, true},
		"no key":              {&Task{Private: true, Inputs: in(true)}, false},
		"key for nothing":     {&Task{SealedKey: key}, false},
		"private input alone": {&Task{Inputs: in(true)}, false},
		"long key":            {&Task{Private: true, SealedKey: make([]byte, maxSealedKey+1)}, false},
	} {
		err := c.task.check()
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
