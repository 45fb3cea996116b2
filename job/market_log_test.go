package job

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

var errUnread = errors.New("the disk does not read")

// TestOutputThatCannotBeRead has the container's output unreadable from some
// record on: for a while, which costs nothing, and for ever, which is said.
func TestOutputThatCannotBeRead(t *testing.T) {
	run := func(t *testing.T, mend func(*town)) (j Job, c Contract, log string) {
		inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
			m := w.shops[0].machine
			m.breakStep("log", errUnread)
			m.whole = 3
			w.submit("j1", oneTask("print=3", "gate", "print=7"))
			w.await("it to run", func() bool { return w.state("j1", 0) == Running })
			w.pass(time.Minute)
			mend(w)
			m.open()
			j = w.over("j1")
			c = w.renter.store.allContracts()[0]
			log = w.renter.store.logText(c.ID)
		})
		return j, c, log
	}
	t.Run("for a while", func(t *testing.T) {
		j, c, log := run(t, func(w *town) { w.shops[0].machine.breakStep("log", nil) })
		if j.State != JobDone || c.Reason != "" || c.LogSeq != 10 || strings.Count(log, "\n") != 10 {
			t.Errorf("job %s, %q, %d records, log %q", j.State, c.Reason, c.LogSeq, log)
		}
	})
	t.Run("after the end too, for a while", func(t *testing.T) {
		j, c, log := run(t, func(w *town) {
			w.group.Go(func() {
				<-time.After(500 * time.Millisecond)
				w.shops[0].machine.breakStep("log", nil)
			})
		})
		if j.State != JobDone || c.Reason != "" || c.LogSeq != 10 || strings.Count(log, "\n") != 10 {
			t.Errorf("job %s, %q, %d records, log %q", j.State, c.Reason, c.LogSeq, log)
		}
	})
	t.Run("for ever", func(t *testing.T) {
		j, c, log := run(t, func(*town) {})
		if j.State != JobDone || !strings.Contains(c.Reason, "some of its output is lost: "+errUnread.Error()) || strings.Count(log, "\n") != 3 {
			t.Errorf("job %s, %q, log %q", j.State, c.Reason, log)
		}
	})
}

// TestOutputThatDidNotCome has a provider count more records than it sent.
func TestOutputThatDidNotCome(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("print=3", "gate"))
		id := func() protocol.MsgID { return w.renter.store.allContracts()[0].ID }
		w.await("its output", func() bool {
			return w.state("j1", 0) == Running && strings.Count(w.renter.store.logText(id()), "\n") == 3
		})
		a := renterOf(w.renter).followed("j1")
		a.mu.Lock()
		a.checkLog(a.live[id()], 0)
		a.checkLog(a.live[id()], 3)
		before := len(w.renter.store.eventTexts(EventNotice))
		a.checkLog(a.live[id()], 4)
		a.mu.Unlock()
		if got := w.renter.store.eventTexts(EventNotice); before != 0 || len(got) != 1 || !strings.Contains(got[0], "incomplete") {
			t.Errorf("%d notices before, then %q", before, got)
		}
		w.shops[0].machine.open()
		w.over("j1")
	})
}

// TestReceiptNamesItsResult: what a receipt is for is in it, and a provider takes
// none for another result.
func TestReceiptNamesItsResult(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.rules(func(c call) fate { return fate{loseAnswer: c.name == "result", lose: c.name == "heartbeat"} })
		w.submit("j1", oneTask("sleep=1s"))
		w.await("the result to be taken", func() bool { return w.state("j1", 0) == Done })
		id := w.renter.store.allContracts()[0].ID
		var res, rec Message
		w.renter.store.view(func(tx *memTx) {
			res = must(tx.LastMessage(id, protocol.KindResult))
			rec = must(tx.LastMessage(id, protocol.KindReceipt))
		})
		receipt := must(protocol.Reopen[*protocol.Receipt](testNet, rec.Raw))
		if want := protocol.IDOf(res.Raw); !bytes.Equal(receipt.Msg.GetResultId(), want[:]) {
			t.Errorf("the receipt is of result %x, want %x", receipt.Msg.GetResultId(), want)
		}
		receipt.Msg.ResultId = bytes.Repeat([]byte{1}, 32)
		other := must(protocol.Sign(w.renter.signer, receipt.Msg))
		e := providerOf(w.shops[0]).running(id)
		if err := e.settle(t.Context(), other); !errors.Is(err, protocol.ErrInvalid) || e.contract().Booked {
			t.Errorf("the provider took a receipt of another result: %v", err)
		}
		w.rules(nil)
		w.over("j1")
	})
}
