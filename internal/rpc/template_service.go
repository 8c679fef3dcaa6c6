package rpc

import (
	"context"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

type templateService struct {
	pb.UnimplementedTemplateServiceServer
	*Services
}

// RegisterTemplate stores a template, or finds that it is there.
func (s *templateService) RegisterTemplate(ctx context.Context, req *pb.RegisterTemplateRequest) (*pb.RegisterTemplateResponse, error) {
	if _, err := checkTemplate(req.GetTemplate()); err != nil {
		return nil, under("template", err)
	}
	namespace := caller(ctx).Namespace
	t, err := newTemplate(namespace, req.GetTemplate(), caller(ctx).Actor)
	if err != nil {
		return nil, err
	}
	answer, err := s.engine.RegisterTemplate(ctx, t)
	if err != nil {
		return nil, err
	}
	stored := proto.CloneOf(req.GetTemplate())
	stored.Namespace, stored.Version = namespace, &answer.Version
	return &pb.RegisterTemplateResponse{
		Template: stored, AlreadyRegistered: answer.AlreadyRegistered, RegisteredAt: timestamppb.New(answer.RegisteredAt),
	}, nil
}

// GetTemplate reads one version of a template.
func (s *templateService) GetTemplate(ctx context.Context, req *pb.GetTemplateRequest) (*pb.GetTemplateResponse, error) {
	view, err := s.engine.GetTemplate(ctx, caller(ctx).Namespace, req.GetTemplate().GetName(), req.GetTemplate().GetVersion())
	if err != nil {
		return nil, err
	}
	t, err := templateMessage(&view)
	if err != nil {
		return nil, err
	}
	return &pb.GetTemplateResponse{Template: t, RegisteredAt: timestamppb.New(view.CreatedAt), RegisteredBy: view.CreatedBy}, nil
}

// ListTemplates reads a page of a namespace's templates.
func (s *templateService) ListTemplates(ctx context.Context, req *pb.ListTemplatesRequest) (*pb.ListTemplatesResponse, error) {
	found, err := s.engine.ListTemplates(ctx, caller(ctx).Namespace, req.GetName(), req.GetLatestOnly(), page(req))
	if err != nil {
		return nil, err
	}
	resp := &pb.ListTemplatesResponse{NextPageToken: found.NextToken}
	for i := range found.Items {
		summary, err := templateSummary(&found.Items[i])
		if err != nil {
			return nil, err
		}
		resp.Templates = append(resp.Templates, summary)
	}
	return resp, nil
}

func templateSummary(v *task.TemplateView) (*pb.TemplateSummary, error) {
	t, err := templateMessage(v)
	if err != nil {
		return nil, err
	}
	return &pb.TemplateSummary{
		Namespace: v.Namespace, Name: v.Name, Version: v.Version, Description: t.GetDescription(), StepCount: count(len(t.GetSteps())),
		RegisteredAt: timestamppb.New(v.CreatedAt), RegisteredBy: v.CreatedBy,
	}, nil
}
