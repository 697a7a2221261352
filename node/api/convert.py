"""From what the daemon knows to what the API says: pure functions of a `NodeView` and its records."""

from collections import Counter
from collections.abc import Iterable, Sequence

from consensus.identifiers import compute_weights_digest
from consensus.openings import get_credited
from consensus.state import Qualified, State, TaskState, get_account_key
from consensus.task import Draft, Milestone, OpenGradient, OpenLoss, PublishTask
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import Address, Hash32
from consensus.vote import Checkpoint
from node.api import schemas
from node.api.fields import CheckpointModel, VoteModel
from node.api.payloads import encode_payload, get_kind
from node.api.task_payloads import CreditModel, DraftModel
from node.api.view import BlockRecord, MilestoneRecord, NodeView, OpeningRecord, TransactionRecord


def build_checkpoint(checkpoint: Checkpoint) -> CheckpointModel:
    return CheckpointModel(height=checkpoint.height, hash=checkpoint.hash.hex())


def build_status(view: NodeView) -> schemas.StatusModel:
    info, head, readiness, voting = view.info, view.get_head(), view.get_readiness(), view.get_voting()
    target = max(view.get_sync_target(), head.header.height)
    return schemas.StatusModel(
        name=info.name,
        version=info.version,
        network=info.network,
        chain_id=info.chain_id.hex(),
        address=info.address.hex(),
        organisation=info.organisation,
        roles=info.roles,
        peer_address=info.peer_address,
        started=info.started,
        head=schemas.HeadModel(
            hash=head.hash.hex(),
            height=head.header.height,
            time=head.header.time,
            state_root=head.header.state_root.hex(),
        ),
        justified=build_checkpoint(view.get_justified()),
        finalized=build_checkpoint(view.get_finalized()),
        content_height=view.get_state().get_finality().content,
        voting=schemas.VotingModel(state=voting.state.value, detail=voting.detail),
        sync=_build_sync(view, head.header.height, target),
        ready=readiness.ready,
        reasons=readiness.reasons,
        peers=sum(peer.connected for peer in view.get_peers()),
        mempool=len(view.get_mempool()),
        tasks=len(view.get_state().get_tasks()),
        last_event_id=view.events.last_id,
    )


def _build_sync(view: NodeView, height: int, target: int) -> schemas.SyncModel:
    progress, base = view.get_sync_progress(), view.get_base()
    if progress is None:
        return schemas.SyncModel(height=height, target=target, synced=height >= target, base=base)
    return schemas.SyncModel(
        height=height,
        target=target,
        synced=height >= target,
        phase=progress.phase.value,
        proved=progress.proved,
        done=progress.done,
        wanted=progress.wanted,
        asked=progress.peers,
        base=base,
    )


def build_header(record: BlockRecord) -> schemas.HeaderModel:
    header = record.block.header
    return schemas.HeaderModel(
        hash=record.hash.hex(),
        version=header.version,
        chain_id=header.chain_id.hex(),
        height=header.height,
        parent=header.parent.hex(),
        time=header.time,
        proposer=header.proposer.hex(),
        transactions_root=header.transactions_root.hex(),
        work_root=header.work_root.hex(),
        votes_root=header.votes_root.hex(),
        state_root=header.state_root.hex(),
    )


def build_transaction(transaction: SignedTransaction) -> schemas.TransactionModel:
    return schemas.TransactionModel(
        id=compute_transaction_id(transaction).hex(),
        chain_id=transaction.chain_id.hex(),
        sender=transaction.sender.hex(),
        nonce=transaction.nonce,
        payload=encode_payload(transaction.payload),
        signature=transaction.signature.hex(),
    )


def build_transaction_summary(record: TransactionRecord) -> schemas.TransactionSummaryModel:
    transaction = record.transaction
    return schemas.TransactionSummaryModel(
        id=record.id.hex(),
        sender=transaction.sender.hex(),
        nonce=transaction.nonce,
        kind=get_kind(transaction.payload),
    )


def build_transaction_status(record: TransactionRecord) -> schemas.TransactionStatusModel:
    inclusion = None
    if record.block is not None and record.height is not None and record.index is not None:
        inclusion = schemas.InclusionModel(block=record.block.hex(), height=record.height, index=record.index)
    return schemas.TransactionStatusModel(
        transaction=build_transaction(record.transaction),
        status="pending" if inclusion is None else "included",
        inclusion=inclusion,
    )


def build_block(record: BlockRecord) -> schemas.BlockModel:
    block = record.block
    return schemas.BlockModel(
        hash=record.hash.hex(),
        header=build_header(record),
        signature=block.signature.hex() or "0" * 128,  # nobody signs genesis
        size=record.size,
        transactions=tuple(build_transaction(transaction) for transaction in block.body.transactions),
        work=None if block.body.work is None else schemas.WorkModel.model_validate(block.body.work),
        votes=tuple(VoteModel.model_validate(vote) for vote in block.body.votes),
    )


def build_block_summary(record: BlockRecord) -> schemas.BlockSummaryModel:
    header, work = record.block.header, record.block.body.work
    return schemas.BlockSummaryModel(
        hash=record.hash.hex(),
        height=header.height,
        parent=header.parent.hex(),
        time=header.time,
        proposer=header.proposer.hex(),
        size=record.size,
        transactions=len(record.block.body.transactions),
        votes=len(record.block.body.votes),
        work=None
        if work is None
        else schemas.WorkSummaryModel(
            task=work.task.hex(),
            first_rung=work.first_rung,
            last_rung=work.last_rung,
            step=work.step,
            loss=work.loss,
        ),
    )


class TaskReader:
    """One task at one state, with the facts that several answers share.

    Raises: LookupError when the state has no such task.
    """

    def __init__(self, view: NodeView, state: State, task: Hash32) -> None:
        record, publication = state.get_task(task), state.get_publication(task)
        draft = None if publication is None else state.get_draft(publication.draft)
        if record is None or publication is None or draft is None:
            raise LookupError(f"no task {task.hex()}")
        self.id = task
        self.view = view
        self.state = state
        self.record: TaskState = record
        self.publication: PublishTask = publication
        self.draft: Draft = draft.draft

    def scale_loss(self, loss: int) -> float:
        """The loss in its own unit."""
        return loss / 2.0**self.draft.loss_scale_bits

    def _scale_optional(self, loss: int | None) -> float | None:
        return None if loss is None else self.scale_loss(loss)

    def build_summary(self) -> schemas.TaskSummaryModel:
        record, ladder = self.record, self.publication.ladder
        return schemas.TaskSummaryModel(
            id=self.id.hex(),
            title=self.draft.title,
            kind=self.draft.kind,
            status=record.status.value,
            custody=record.custody.hex(),
            published_height=record.published_height,
            step=record.step,
            last_loss=record.last_loss,
            last_loss_value=self._scale_optional(record.last_loss),
            next_target_value=(
                self.scale_loss(ladder[record.next_rung].target) if record.next_rung < len(ladder) else None
            ),
            rungs=len(ladder),
            rungs_taken=record.next_taken_rung,
            rungs_settled=0 if record.settled is None else record.settled.last_rung + 1,
            deadline=self.publication.deadline,
        )

    def build_ladder(self) -> tuple[schemas.RungModel, ...]:
        taken = {
            rung: milestone
            for milestone in self.view.get_milestones(self.id)
            for rung in range(milestone.work.first_rung, milestone.work.last_rung + 1)
        }
        met = {r: q for q in self.record.qualified for r in range(q.first_rung, q.last_rung + 1)}
        return tuple(
            self._build_rung(number, rung, taken.get(number), met.get(number))
            for number, rung in enumerate(self.publication.ladder)
        )

    def _build_rung(
        self, number: int, rung: Milestone, taken: MilestoneRecord | None, met: Qualified | None
    ) -> schemas.RungModel:
        source = taken.work if taken is not None else met
        return schemas.RungModel(
            rung=number,
            target=rung.target,
            target_value=self.scale_loss(rung.target),
            reward=rung.reward,
            state=self._get_rung_state(taken, met),
            step=None if source is None else source.step,
            loss=None if source is None else source.loss,
            loss_value=None if source is None else self.scale_loss(source.loss),
            block=None if taken is None else taken.block.hex(),
            height=None if taken is None else taken.height,
            proposer=None if taken is None else taken.proposer.hex(),
        )

    def _get_rung_state(self, taken: MilestoneRecord | None, met: Qualified | None) -> str:
        if taken is None:
            return "open" if met is None else "qualified"
        opening = taken.work.loss_opening
        if opening in self.record.judged:
            return "settled"
        waits = any(item.milestone.loss_opening == opening for item in self.record.unsettled)
        return "taken" if waits else "void"

    def _count_patches(self) -> tuple[int, int, int]:
        """(training batches, training patches, validation patches)."""
        training, validation = [], []
        for contribution in self.publication.contributions:
            found = self.state.get_contribution(contribution)
            if found is not None:
                training += [batch.patches for batch in found.contribute.training]
                validation += [batch.patches for batch in found.contribute.validation]
        return len(training), sum(training), sum(validation)

    def _build_miner_credits(self) -> tuple[schemas.MinerCreditModel, ...]:
        counts: Counter[Address] = Counter()
        for found in self.view.get_openings(self.id):
            if isinstance(found.opening, OpenGradient):
                counts.update(get_credited(found.opening))
        return tuple(
            schemas.MinerCreditModel(
                miner=miner.hex(), organisation=self.state.get_account(miner).organisation, batches=count
            )
            for miner, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        )

    def _build_committee(self) -> schemas.CommitteeModel | None:
        found = self.state.get_ceremonies(self.draft.ceremony)
        if not found:
            return None
        ceremony, record = found[-1]
        members = tuple(member.hex() for member in record.create.members)
        return schemas.CommitteeModel(
            ceremony=ceremony.hex(), members=members, threshold=record.create.threshold
        )

    def build_detail(self) -> schemas.TaskModel:
        record, publication, draft = self.record, self.publication, self.draft
        batches, training_patches, validation_patches = self._count_patches()
        privacy = self.view.get_privacy(self.id)
        return schemas.TaskModel(
            **self.build_summary().model_dump(),
            draft=publication.draft.hex(),
            custody_organisation=self.state.get_account(record.custody).organisation,
            committee=self._build_committee(),
            contributions=tuple(contribution.hex() for contribution in publication.contributions),
            loss_scale_bits=draft.loss_scale_bits,
            gradient_scale_bits=draft.gradient_scale_bits,
            weights=compute_weights_digest(record.weights).hex(),
            ladder=self.build_ladder(),
            gradient_openings=schemas.SpentModel(
                spent=record.gradient_openings, most=draft.max_gradient_openings
            ),
            loss_openings=schemas.SpentModel(spent=record.loss_openings, most=draft.max_loss_openings),
            batches=batches,
            batches_per_step=publication.batches_per_step,
            training_patches=training_patches,
            validation_patches=validation_patches,
            credits=self._build_miner_credits(),
            available_stake=record.available_stake,
            escrow=record.escrow,
            bond=record.bond,
            batch_fee=publication.batch_fee,
            privacy=None if privacy is None else schemas.PrivacyModel.model_validate(privacy),
            privacy_statement=draft.privacy,
        )

    def build_steps(self) -> tuple[schemas.StepModel, ...]:
        """Every step with an opening, ascending."""
        losses: dict[int, tuple[OpeningRecord, int]] = {}
        gradients: dict[int, tuple[OpeningRecord, Sequence[Address]]] = {}
        for found in self.view.get_openings(self.id):
            if isinstance(found.opening, OpenLoss):
                losses[found.opening.step] = found, found.opening.loss
            else:
                gradients[found.opening.step] = found, get_credited(found.opening)
        rates = self.publication.optimizer.learning_rates
        steps = []
        for step in sorted(losses.keys() | gradients.keys()):
            loss = losses.get(step)
            gradient = gradients.get(step)
            found = gradient[0] if gradient else losses[step][0]
            steps.append(
                schemas.StepModel(
                    step=step,
                    learning_rate=rates[step] if step < len(rates) else 0,
                    opening=gradient[0].hash.hex() if gradient else None,
                    height=found.height,
                    time=found.time,
                    miners=build_credits(gradient[1]) if gradient else (),
                    loss=loss[1] if loss else None,
                    loss_value=self.scale_loss(loss[1]) if loss else None,
                )
            )
        return tuple(steps)

    def build_opening(self, found: OpeningRecord) -> schemas.OpeningModel:
        opening = found.opening
        return schemas.OpeningModel(
            hash=found.hash.hex(),
            kind="loss" if isinstance(opening, OpenLoss) else "gradient",
            step=opening.step,
            previous=opening.previous.hex(),
            weights=opening.weights.hex(),
            transaction=found.transaction.hex(),
            block=found.block.hex(),
            height=found.height,
            time=found.time,
            loss=opening.loss if isinstance(opening, OpenLoss) else None,
            loss_value=self.scale_loss(opening.loss) if isinstance(opening, OpenLoss) else None,
            ciphertext=opening.ciphertext.hex() if isinstance(opening, OpenLoss) else None,
            recomputed=found.recomputed,
            credits=build_credits(get_credited(opening)) if isinstance(opening, OpenGradient) else (),
            attempt=opening.attempt,
            signers=tuple(item.member.hex() for item in opening.cosignatures),
        )

    def build_model(self) -> schemas.TrainedModel | None:
        """The weights at the last settled milestone; None before the first."""
        settled = self.record.judged
        milestones = [item for item in self.view.get_milestones(self.id) if item.work.loss_opening in settled]
        if not milestones:
            return None
        last = milestones[-1]
        return schemas.TrainedModel(
            task=self.id.hex(),
            title=self.draft.title,
            status=self.record.status.value,
            rung=last.work.last_rung,
            step=last.work.step,
            loss=last.work.loss,
            loss_value=self.scale_loss(last.work.loss),
            weights_digest=compute_weights_digest(last.work.weights).hex(),
            kind=self.draft.kind,
            specification=self.draft.model.hex(),
            weights=last.work.weights,
            block=last.block.hex(),
            height=last.height,
        )


def build_model_summary(model: schemas.TrainedModel) -> schemas.ModelSummaryModel:
    names = schemas.ModelSummaryModel.model_fields
    return schemas.ModelSummaryModel(**{name: getattr(model, name) for name in names})


def build_credits(miners: Iterable[Address]) -> tuple[CreditModel, ...]:
    """Who computed how many of the batches, most first."""
    counts = Counter(miners)
    return tuple(
        CreditModel(miner=miner.hex(), batches=count)
        for miner, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def build_account(view: NodeView, address: Address) -> schemas.AccountModel:
    """The account with a proof under the head's state root (of absence, for one never used)."""
    head, state = view.get_head(), view.get_state()
    account = state.get_account(address)
    key = get_account_key(address)
    proof = state.tree.get_proof(key)
    return schemas.AccountModel(
        address=address.hex(),
        balance=account.balance,
        nonce=account.nonce,
        organisation=account.organisation,
        mines=state.may_mine(account.organisation),
        block=head.hash.hex(),
        height=head.header.height,
        proof=schemas.ProofModel(
            root=state.root.hex(),
            key=key.hex(),
            steps=tuple(schemas.ProofStepModel.model_validate(step) for step in proof.steps),
            leaf=None if proof.leaf is None else schemas.ProofLeafModel.model_validate(proof.leaf),
        ),
    )


def build_draft(view: NodeView, draft: Hash32) -> schemas.DraftStatusModel | None:
    found = view.get_state().get_draft(draft)
    if found is None:
        return None
    return schemas.DraftStatusModel(
        hash=draft.hex(),
        draft=DraftModel.model_validate(found.draft),
        sender=found.sender.hex(),
        used=found.used,
    )
