package main

import (
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress shows how far long work has come, on a terminal only.
type progress struct {
	container *mpb.Progress
	bar       *mpb.Bar
}

// newProgress shows a bar on stderr if that is a terminal and the answer is for people.
func (s *session) newProgress(name string, total int64) *progress {
	if !isTerminal(s.cli.stderr) || s.format != "table" {
		return &progress{}
	}
	container := mpb.New(mpb.WithOutput(s.cli.stderr), mpb.WithWidth(40))
	return &progress{container: container, bar: container.AddBar(total,
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(name+" "), decor.CountersNoUnit("%d / %d")),
		mpb.AppendDecorators(decor.AverageETA(decor.ET_STYLE_GO)),
	)}
}

func (p *progress) set(current, total int64) {
	if p.bar != nil {
		p.bar.SetTotal(total, false)
		p.bar.SetCurrent(current)
	}
}

// end takes the bar away, whether the work was finished or not.
func (p *progress) end() {
	if p.bar != nil {
		p.bar.Abort(true)
		p.container.Wait()
	}
}
